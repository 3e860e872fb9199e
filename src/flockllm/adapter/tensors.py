"""The task's tensor list, and the one safetensors file that can hold it.

Everything that participants exchange is a flat run of integers: the tensors of the task one after
the other, in name order. The task fixes names, shapes and types, so a file's header carries no
information: it is computed, and a stranger's is compared, never parsed.
"""

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from mmap import mmap
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flockllm.errors import InvalidUpdate

Shapes = Mapping[str, tuple[int, ...]]
"""The task's tensor list: name → shape, as PEFT names tensors on disk."""

BLOCK = 1 << 18
"""Numbers that are handled at a time."""

Data = bytes | bytearray | memoryview | mmap
"""Bytes as they came; a mapped file is read block by block and never held in memory."""


class Values(Protocol):
    """A flat run of int16: an array, or decoded where it is looked at."""

    def __getitem__(self, span: slice, /) -> NDArray[np.int16]: ...


def size(shapes: Shapes) -> int:
    """How many numbers an adapter with these tensors has."""
    return sum(math.prod(shape) for shape in shapes.values())


def spans(shapes: Shapes) -> dict[str, slice]:
    """Where each tensor lies in the flat run, in name order."""
    names = sorted(shapes)
    ends = accumulate((math.prod(shapes[name]) for name in names), initial=0)
    return {name: slice(*span) for name, span in zip(names, pairwise(ends), strict=True)}


Part = tuple[int, slice]
"""A tensor's place in name order, and which part of the flat run is its."""


def blocks(shapes: Shapes, block: int = BLOCK) -> Iterator[tuple[slice, list[Part]]]:
    """The flat run, cut into pieces that are handled one at a time; each with its tensors."""
    everything = list(enumerate(spans(shapes).values()))
    starts, stops = [span.start for _, span in everything], [span.stop for _, span in everything]
    for start in range(0, size(shapes), block):
        piece = slice(start, min(start + block, size(shapes)))
        inside = slice(bisect_right(stops, start), bisect_left(starts, piece.stop))
        yield piece, list(_cut(everything[inside], piece))


def parts(shapes: Shapes, piece: slice) -> Iterator[Part]:
    """The tensors in a piece of the run."""
    return _cut(enumerate(spans(shapes).values()), piece)


def _cut(spans: Iterable[Part], piece: slice) -> Iterator[Part]:
    for index, span in spans:
        start, stop = max(span.start, piece.start), min(span.stop, piece.stop)
        if start < stop:
            yield index, slice(start, stop)


def header(entries: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a safetensors file of `entries`, name → (dtype, shape), in that order.

    Byte for byte what the safetensors library writes: compact JSON, padded to 8 bytes.
    """
    table: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + math.prod(shape) * _WIDTH[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def payload(data: Data, expected_header: bytes, length: int) -> memoryview:
    """The bytes behind the header of a file that must be exactly so long and begin exactly so.

    Raises:
        InvalidUpdate: another length, or any other header.
    """
    view = memoryview(data).cast("B")
    if len(view) != len(expected_header) + length:
        raise InvalidUpdate(
            f"{len(view)} bytes where the task's tensors take {len(expected_header) + length}"
        )
    if view[: len(expected_header)] != expected_header:
        raise InvalidUpdate("the file's header is not the one of the task's tensor list")
    return view[len(expected_header) :]


def named(flat: NDArray[Any], shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Views of the flat run as the task's tensors, in name order."""
    return {name: flat[span].reshape(shapes[name]) for name, span in spans(shapes).items()}


_WIDTH = {"I8": 1, "I16": 2, "I32": 4, "F32": 4}
