"""How an update becomes bytes. The task names one of `CODECS`; all decode to the same integers.

Each codec has exactly one encoding for a delta that it can express, and refuses every other
file, so that a file and its digest stand for one update. The length of what is decoded follows
from the task's tensor list, never from the file.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import tensors
from flockllm.adapter.tensors import Data, Shapes, Values
from flockllm.errors import InvalidUpdate

Shifts = NDArray[np.int8]

INT16 = 32_767
"""Values are symmetric: −32 768 is not used."""


@dataclass(frozen=True)
class Codec:
    """One way to write updates down."""

    largest: int
    """Values lie in ±largest, before the shift."""
    encode: Callable[[Shapes, Shifts, Values], bytes]
    decode: Callable[[Data, Shapes], tuple[Shifts, Values]]
    max_bytes: Callable[[Shapes], int]
    """No update with these tensors takes more; a longer file need not be fetched."""


def _encode_plain(shapes: Shapes, shifts: Shifts, values: Values) -> bytes:
    """A safetensors file: the task's tensors as I16 in name order, then the I8 tensor `shift`.

    A tensor's shift is the smallest with which all its values lie in ±32 767.
    """
    normal = np.empty(tensors.size(shapes), "<i2")
    lowest = np.zeros(len(shapes), np.int8)
    for index, span in enumerate(tensors.spans(shapes).values()):
        delta = values[span].astype(np.int32) << int(shifts[index])
        largest = int(np.abs(delta).max(initial=0))
        lowest[index] = max(0, largest.bit_length() - 15)
        normal[span] = delta >> lowest[index]
    return _plain_header(shapes) + normal.tobytes() + lowest.tobytes()


def _decode_plain(data: Data, shapes: Shapes) -> tuple[Shifts, Values]:
    count = tensors.size(shapes)
    held = tensors.payload(data, _plain_header(shapes), 2 * count + len(shapes))
    values = np.frombuffer(held[: 2 * count], "<i2")
    shifts = np.frombuffer(held[2 * count :], np.int8)
    for (name, span), shift in zip(tensors.spans(shapes).items(), shifts, strict=True):
        low, high = int(values[span].min(initial=0)), int(values[span].max(initial=0))
        if low < -INT16 or not 0 <= shift <= 16:
            raise InvalidUpdate(f"{name}: a value or the shift is out of range")
        if shift and max(-low, high) <= INT16 >> 1:
            raise InvalidUpdate(f"{name}: a smaller shift would do")
    return shifts, values


def _plain_bytes(shapes: Shapes) -> int:
    return len(_plain_header(shapes)) + 2 * tensors.size(shapes) + len(shapes)


def _plain_header(shapes: Shapes) -> bytes:
    entries = {name: ("I16", shapes[name]) for name in sorted(shapes)}
    return tensors.header(entries | {"shift": ("I8", (len(shapes),))})


CODECS = {"plain": Codec(INT16, _encode_plain, _decode_plain, _plain_bytes)}
"""The names a task definition may use."""
