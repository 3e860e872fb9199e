"""What strangers send. Refusing costs no more memory than the task's tensors, and no parsing."""

import json
import mmap
import pickle
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from flockllm.adapter import Adapter, Update, max_bytes
from flockllm.errors import InvalidUpdate

SHAPES = {"a.lora_A.weight": (4, 32), "a.lora_B.weight": (32, 4)}
HONEST = {
    "a.lora_A.weight": np.arange(128, dtype=np.int16).reshape(4, 32),
    "a.lora_B.weight": np.full((32, 4), -32_767, np.int16),
    "shift": np.array([0, 3], np.int8),
}
VALID = safetensors.numpy.save(HONEST)
PAYLOAD = VALID[8 + int.from_bytes(VALID[:8], "little") :]


def changed(**tensors) -> bytes:
    """The honest file with tensors replaced, added, or with None left out."""
    names = {"a": "a.lora_A.weight", "b": "a.lora_B.weight", "shift": "shift"}
    held = HONEST | {names.get(key, key): tensor for key, tensor in tensors.items()}
    return safetensors.numpy.save({key: t for key, t in held.items() if t is not None})


def with_header(header: bytes, payload: bytes = PAYLOAD) -> bytes:
    """A file with a header of the attacker's own making."""
    return len(header).to_bytes(8, "little") + header + payload


def entry(dtype: str, shape: list[int], start: int, stop: int) -> bytes:
    """One tensor of a header."""
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}).encode()


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a stranger's pickle was loaded",))


HEADER = VALID[8 : len(VALID) - len(PAYLOAD)]
ATTACKS = {
    "empty": b"",
    "one byte": b"\0",
    "truncated": VALID[:-1],
    "trailing byte": VALID + b"\0",
    "header only": VALID[: -len(PAYLOAD)],
    "pickle": pickle.dumps({"a.lora_A.weight": Bomb()}),
    "pickle of the right length": pickle.dumps(Bomb()).ljust(len(VALID), b"\0"),
    "header of 1 GB, claimed": (1 << 30).to_bytes(8, "little") + VALID[8:],
    "header of 2⁶⁴ − 1 bytes, claimed": b"\xff" * 8 + VALID[8:],
    "wrong shape": changed(a=HONEST["a.lora_A.weight"].reshape(32, 4)),
    "wrong rank": changed(a=HONEST["a.lora_A.weight"].ravel()),
    "larger": changed(a=np.zeros((8, 32), np.int16)),
    "NaN in float16": changed(b=np.full((32, 4), np.nan, np.float16)),
    "float32": changed(b=np.full((32, 4), np.inf, np.float32)),
    "NaN in BF16 bits": VALID.replace(b'"I16"', b'"BF16"', 1),
    "unsigned": changed(b=np.zeros((32, 4), np.uint16)),
    "missing tensor": changed(b=None),
    "missing shifts": changed(shift=None),
    "tensor too many": changed(c=np.zeros(1, np.int16)),
    "climbing name": changed(**{"../../x": np.zeros(1, np.int16)}),
    "climbing name in place": VALID.replace(b"a.lora_A.weight", b"../../../weight"),
    "duplicate name": VALID.replace(b"a.lora_B.weight", b"a.lora_A.weight"),
    "a million empty tensors": with_header(
        b"{" + b",".join(b'"%d":' % i + entry("I16", [0], 0, 0) for i in range(1_000_000)) + b"}"
    ),
    "metadata": safetensors.numpy.save(HONEST, {"format": "pt"}),
    "other order": with_header(
        b"{" + b",".join(reversed(HEADER.strip()[1:-1].split(b',"s'))) + b"}"
    ),
    "one more space": with_header(HEADER + b" " * 8),
    "overlapping": VALID.replace(b"[256,512]", b"[000,256]"),
    "deep JSON": with_header(b"[" * 100_000),
    "shift of 17": changed(shift=np.array([0, 17], np.int8)),
    "negative shift": changed(shift=np.array([-1, 3], np.int8)),
    "shift larger than needed": changed(shift=np.array([1, 3], np.int8)),
    "shift of a zero tensor": changed(
        a=np.zeros((4, 32), np.int16), shift=np.array([1, 3], np.int8)
    ),
    "value of −32 768": changed(b=np.full((32, 4), -32_768, np.int16)),
}


def test_the_honest_file_is_read():
    """The attacks below are each one step away from a file that passes."""
    update = Update.from_bytes(VALID, SHAPES, "plain")

    assert update.to_bytes("plain") == VALID
    assert update.deltas()["a.lora_B.weight"].min() == -32_767 << 3


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_updates_are_refused_cheaply(attack):
    """Every attack raises `InvalidUpdate`, with less memory than 64 KiB, however long it is."""
    data = ATTACKS[attack]
    assert data != VALID

    tracemalloc.start()
    try:
        with pytest.raises(InvalidUpdate):
            Update.from_bytes(data, SHAPES, "plain")
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_adapters_are_refused(attack):
    """None of them is an adapter either."""
    with pytest.raises(InvalidUpdate):
        Adapter.from_bytes(ATTACKS[attack], SHAPES)


def test_a_file_of_a_gigabyte_is_refused_unread(tmp_path):
    """The length is looked at first: a mapped file of 1 GB that is all header costs nothing."""
    path = tmp_path / "update"
    with path.open("wb") as file:
        file.write(((1 << 30) - 8).to_bytes(8, "little") + b"{")
        file.truncate(1 << 30)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert len(data) > max_bytes(SHAPES, "plain")
        with pytest.raises(InvalidUpdate, match="1073741824 bytes"):
            Update.from_bytes(data, SHAPES, "plain")
