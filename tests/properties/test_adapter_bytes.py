import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flockllm.adapter import CODECS, Adapter, Update
from flockllm.errors import InvalidUpdate

SHAPES = {"a.lora_A.weight": (2, 5), "a.lora_B.weight": (5, 2), "b.lora_A.weight": (2, 3)}
ADAPTER = Adapter.initial(SHAPES, b"seed").to_bytes()


@st.composite
def updates(draw, largest=32_767):
    """Any update, with every mixture of small, large and zero tensors."""
    values, shifts = [], []
    for shape in SHAPES.values():
        most = draw(st.sampled_from(sorted({0, 1, largest // 2, largest})))
        count = math.prod(shape)
        values += draw(st.lists(st.integers(-most, most), min_size=count, max_size=count))
        shifts.append(draw(st.integers(0, 16)))
    return Update(SHAPES, np.array(shifts, np.int8), np.array(values, np.int16))


edits = {"at": st.integers(0, 700), "cut": st.integers(0, 20), "put": st.binary(max_size=20)}


@given(**edits)
def test_any_edit_of_an_adapter_is_an_adapter_or_refused(at, cut, put):
    """Whatever a stranger does to the bytes, the answer is their adapter or `InvalidUpdate`."""
    data = ADAPTER[:at] + put + ADAPTER[at + cut :]
    try:
        adapter = Adapter.from_bytes(data, SHAPES)
    except InvalidUpdate:
        return
    assert adapter.to_bytes() == data


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_an_update_survives_its_bytes(codec, data):
    """What is read is what was written, to the last bit of every number."""
    update = data.draw(updates(CODECS[codec].largest))

    read = Update.from_bytes(update.to_bytes(codec), SHAPES, codec)

    for name, delta in update.deltas().items():
        assert (read.deltas()[name] == delta).all()
    assert read.to_bytes("plain") == update.to_bytes("plain")


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data(), **edits)
def test_any_edit_of_an_update_is_canonical_or_refused(codec, data, at, cut, put):
    """A file that is read at all is the one that writing gives: one update, one digest."""
    valid = data.draw(updates(CODECS[codec].largest)).to_bytes(codec)
    edited = valid[: at % len(valid)] + put + valid[at % len(valid) + cut :]
    try:
        update = Update.from_bytes(edited, SHAPES, codec)
    except InvalidUpdate:
        return
    assert update.to_bytes(codec) == edited


@pytest.mark.parametrize("codec", CODECS)
@given(junk=st.binary(max_size=400))
def test_junk_is_refused_or_canonical(codec, junk):
    """Bytes from nowhere raise nothing but `InvalidUpdate`."""
    try:
        update = Update.from_bytes(junk, SHAPES, codec)
    except InvalidUpdate:
        return
    assert update.to_bytes(codec) == junk
