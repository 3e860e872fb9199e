"""How an update becomes bytes. The task names one of `CODECS`; all decode to the same integers.

Each codec has exactly one encoding for a delta that it can express, and refuses every other
file, so that a file and its digest stand for one update. The length of what is decoded follows
from the task's tensor list, never from the file.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import rans, tensors
from flockllm.adapter.tensors import Data, Shapes, Values
from flockllm.errors import InvalidUpdate

Shifts = NDArray[np.int8]

INT16 = 32_767
"""Values are symmetric: −32 768 is not used."""


class Codec(Protocol):
    """One way to write updates down: `Plain` or `Packed`."""

    @property
    def largest(self) -> int:
        """Values lie in ±largest, before the shift."""
        ...

    def round(self, delta: NDArray[np.float64]) -> tuple[NDArray[np.int16], int]:
        """The values and the shift that are published for what one tensor moved by."""
        ...

    def encode(self, shapes: Shapes, shifts: Shifts, values: Values) -> bytes:
        """The one file of an update."""
        ...

    def decode(self, data: Data, shapes: Shapes) -> tuple[Shifts, Values]:
        """The update in a stranger's file, or `InvalidUpdate`."""
        ...

    def max_bytes(self, shapes: Shapes) -> int:
        """No update with these tensors takes more; a longer file need not be fetched."""
        ...


@dataclass(frozen=True)
class Plain:
    """A safetensors file: the task's tensors as I16 in name order, then the I8 tensor `shift`.

    A tensor's shift is the smallest with which all its values lie in ±32 767.
    """

    largest: int = INT16

    def round(self, delta: NDArray[np.float64]) -> tuple[NDArray[np.int16], int]:
        """Full precision: the smallest shift that fits, to the nearest."""
        largest, shift = float(np.abs(delta).max(initial=0)), 0
        while np.rint(math.ldexp(largest, -shift)) > INT16 and shift < 16:
            shift += 1
        values = np.clip(np.rint(np.ldexp(delta, -shift)), -INT16, INT16)
        return values.astype(np.int16), shift

    def encode(self, shapes: Shapes, shifts: Shifts, values: Values) -> bytes:
        """The smallest shifts, whatever they are in memory."""
        normal = np.empty(tensors.size(shapes), "<i2")
        lowest = np.zeros(len(shapes), np.int8)
        for index, span in enumerate(tensors.spans(shapes).values()):
            delta = values[span].astype(np.int32) << int(shifts[index])
            lowest[index] = max(0, int(np.abs(delta).max(initial=0)).bit_length() - 15)
            normal[span] = delta >> lowest[index]
        return self._header(shapes) + normal.tobytes() + lowest.tobytes()

    def decode(self, data: Data, shapes: Shapes) -> tuple[Shifts, Values]:
        """Views of `data`."""
        count = tensors.size(shapes)
        held = tensors.payload(data, self._header(shapes), 2 * count + len(shapes))
        values = np.frombuffer(held[: 2 * count], "<i2")
        shifts = np.frombuffer(held[2 * count :], np.int8)
        for (name, span), shift in zip(tensors.spans(shapes).items(), shifts, strict=True):
            low, high = int(values[span].min(initial=0)), int(values[span].max(initial=0))
            if low < -INT16 or not 0 <= shift <= 16:
                raise InvalidUpdate(f"{name}: a value or the shift is out of range")
            if shift and max(-low, high) <= INT16 >> 1:
                raise InvalidUpdate(f"{name}: a smaller shift would do")
        return shifts, values

    def max_bytes(self, shapes: Shapes) -> int:
        """Every file is as long."""
        return len(self._header(shapes)) + 2 * tensors.size(shapes) + len(shapes)

    def _header(self, shapes: Shapes) -> bytes:
        entries = {name: ("I16", shapes[name]) for name in sorted(shapes)}
        return tensors.header(entries | {"shift": ("I8", (len(shapes),))})


@dataclass(frozen=True)
class Packed:
    """Few levels, entropy coded: the I8 shift of each tensor, then one `rans` stream.

    A tensor's shift is the largest that divides its delta: one of its values is odd. A tensor
    that does not move has shift −1 and no place in the stream. The stream has the values of the
    others in name order, each plus `largest`.
    """

    largest: int
    step: float
    """Distance of levels, in root mean squares of the tensor; rounded to a power of two."""
    dead: float
    """What moved less is not told, in root mean squares."""

    def round(self, delta: NDArray[np.float64]) -> tuple[NDArray[np.int16], int]:
        """The nearest level, but zero below `dead` and at least one above."""
        rms = math.sqrt(float(delta @ delta) / max(1, len(delta)))
        if rms == 0:
            return np.zeros(len(delta), np.int16), 0
        shift = min(max(0, round(math.log2(self.step * rms))), self._most)
        size = np.abs(delta)
        level = np.clip(np.rint(np.ldexp(size, -shift)), 1, self.largest)
        level[size < self.dead * rms] = 0
        return np.copysign(level, delta).astype(np.int16), shift

    def encode(self, shapes: Shapes, shifts: Shifts, values: Values) -> bytes:
        """The largest shifts; `ValueError` for what was not rounded to these levels."""
        highest = np.full(len(shapes), -1, np.int8)
        symbols = []
        for index, span in enumerate(tensors.spans(shapes).values()):
            delta = values[span].astype(np.int32) << int(shifts[index])
            bits = int(np.bitwise_or.reduce(delta))
            if not bits:
                continue
            highest[index] = (bits & -bits).bit_length() - 1
            level = delta >> highest[index]
            if np.abs(level).max() > self.largest or highest[index] > self._most:
                raise ValueError("the update has more levels than its codec: round it first")
            symbols.append((level + self.largest).astype(np.uint8))
        stream = rans.encode(np.concatenate(symbols), self._alphabet) if symbols else b""
        return highest.tobytes() + stream

    def decode(self, data: Data, shapes: Shapes) -> tuple[Shifts, Values]:
        """Decodes once to check, and again wherever the values are looked at."""
        if not len(shapes) <= len(data) <= self.max_bytes(shapes):
            raise InvalidUpdate(f"{len(data)} bytes cannot be an update with these tensors")
        view = memoryview(data)
        shifts = np.frombuffer(view[: len(shapes)], np.int8)
        if shifts.min(initial=0) < -1 or shifts.max(initial=0) > self._most:
            raise InvalidUpdate("a shift is out of range")
        live = [
            span for span, s in zip(tensors.spans(shapes).values(), shifts, strict=True) if s >= 0
        ]
        count = sum(span.stop - span.start for span in live)
        if not count:
            if len(data) > len(shapes) or live:
                raise InvalidUpdate("there is a stream, but no tensor for it")
            return np.zeros(len(shapes), np.int8), np.zeros(tensors.size(shapes), np.int16)
        symbols, stream = rans.decode(view[len(shapes) :], count, self._alphabet)
        levels = Levels(stream, live, self.largest)
        for at, span in zip(levels.starts, live, strict=True):
            if not ((symbols[at : at + span.stop - span.start] ^ self.largest) & 1).any():
                raise InvalidUpdate("a larger shift would do")
        return np.maximum(shifts, 0), levels

    def max_bytes(self, shapes: Shapes) -> int:
        """Far more than honest updates take, which are near their entropy."""
        return len(shapes) + rans.max_bytes(tensors.size(shapes), self._alphabet)

    @property
    def _alphabet(self) -> int:
        return 2 * self.largest + 1

    @property
    def _most(self) -> int:
        """The largest shift with which every level is an int32."""
        return 31 - self.largest.bit_length()


class Levels:
    """The values of a packed update, decoded where they are looked at."""

    def __init__(self, stream: rans.Stream, live: list[slice], largest: int) -> None:
        self.stream, self.live, self.largest = stream, live, largest
        self.starts = [0, *accumulate(span.stop - span.start for span in live)][:-1]

    def __getitem__(self, span: slice) -> NDArray[np.int16]:
        values = np.zeros(span.stop - span.start, np.int16)
        overlaps = [
            (at - there.start, max(span.start, there.start), min(span.stop, there.stop))
            for at, there in zip(self.starts, self.live, strict=True)
            if there.start < span.stop and span.start < there.stop
        ]
        if overlaps:
            (first, begin, _), (last, _, end) = overlaps[0], overlaps[-1]
            origin = first + begin
            symbols = self.stream[origin : last + end].astype(np.int16) - np.int16(self.largest)
            for move, begin, end in overlaps:
                told = symbols[move + begin - origin : move + end - origin]
                values[begin - span.start : end - span.start] = told
        return values


CODECS: dict[str, Codec] = {
    "plain": Plain(),
    "int8": Packed(largest=127, step=1 / 16, dead=1 / 32),
    "int4": Packed(largest=7, step=1 / 2, dead=1 / 4),
    "int2": Packed(largest=1, step=1.5, dead=0.75),
    "sparse": Packed(largest=1, step=2.5, dead=2.0),
}
"""The names a task definition may use."""
