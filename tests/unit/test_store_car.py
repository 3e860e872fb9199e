"""Streams of blocks: what is written is read, and a stranger's stream is right or refused."""

import random
from contextlib import suppress
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from flockllm.dag import Profile, cid_bytes, varint
from flockllm.errors import StoreError
from flockllm.store.car import read_car, write_car

unhurried = settings(deadline=None)
"""A busy machine is no failure."""

PROFILE = Profile(leaf=40, width=3)
DATA = random.Random(0).randbytes(300)
BLOCKS = list(PROFILE.blocks(DATA))
CAR = b"".join(write_car(*BLOCKS[-1][:2], BLOCKS))
RIGHT = {(digest, bytes(block)) for _, digest, block in BLOCKS}


@unhurried
@given(st.lists(st.integers(0, len(CAR)), max_size=20))
def test_what_is_written_is_read_in_any_pieces(cuts):
    """Chunks of a network have nothing to do with blocks."""
    edges = [0, *sorted(cuts), len(CAR)]
    chunks = [CAR[a:b] for a, b in pairwise(edges)]

    read = list(read_car(chunks))
    assert read == [(digest, bytes(block)) for _, digest, block in BLOCKS]


@unhurried
@given(st.integers(0, len(CAR)), st.integers(0, 60), st.binary(max_size=60))
def test_any_edit_gives_right_blocks_or_an_error(at, cut, put):
    """Whatever comes out before the error is a block that is what its digest says."""
    read = []
    try:
        for block in read_car([CAR[:at] + put + CAR[at + cut :]]):
            read.append(block)  # noqa: PERF402  it ends in an error, after some
    except StoreError:
        pass
    assert set(read) <= RIGHT


@unhurried
@given(st.binary(max_size=300))
def test_what_is_no_car_gives_no_block(data):
    """Noise ends in an error or in nothing."""
    with suppress(StoreError):
        assert list(read_car([data])) == []


def test_other_kinds_of_cid_are_refused():
    """Version 0, another hash, and content in place of a hash: none is an address of ours."""
    header = next(write_car(*BLOCKS[-1][:2], ()))
    digest, block = BLOCKS[0][1], bytes(BLOCKS[0][2])
    for cid in (
        b"\x12\x20" + digest,  # version 0
        b"\x01\x55\x13\x20" + digest,  # sha2-512, cut
        b"\x01\x55\x00\x20" + digest,  # identity
        b"\x01\x71\x12\x21" + digest,
    ):
        section = cid + block
        try:
            blocks = list(read_car([header, varint(len(section)), section]))
        except StoreError:
            continue
        raise AssertionError(blocks)
    right = cid_bytes(0x55, digest) + block
    assert list(read_car([header, varint(len(right)), right])) == [(digest, block)]
