"""How an update becomes bytes. The task names one of `CODECS`; all decode to the same integers.

Each codec has exactly one encoding for a delta that it can express, and refuses every other
file, so that a file and its digest stand for one update. The length of what is decoded follows
from the task's tensor list, never from the file.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
    """Few levels, entropy coded: `level · factor << shift`, one factor and shift a tensor.

    The file is the shifts (I8), the factors (U8), and one `rans` stream of the levels, each plus
    `largest`, in name order. factor << shift is the greatest common divisor of a tensor's delta,
    with an odd factor. A tensor that does not move has shift −1, factor 0 and no levels.
    """

    largest: int
    step: float | None
    """Distance of levels in root mean squares of the tensor; None: the mean of what is told."""
    keep: float
    """Part of a tensor's numbers that is told at the most, the largest ones."""
    dead: float
    """What moved less is not told, in root mean squares."""

    def round(self, delta: NDArray[np.float64]) -> tuple[NDArray[np.int16], int]:
        """The nearest level, but at least one for what is told, and none for the rest."""
        size = np.abs(delta)
        rms = math.sqrt(float(np.mean(size * size))) if len(size) else 0.0
        if rms < 0.5:
            return np.zeros(len(delta), np.int16), 0
        least = self.dead * rms
        if self.keep < 1:
            kept = math.ceil(self.keep * len(size))
            least = max(least, float(np.partition(size, len(size) - kept)[len(size) - kept]))
        told = size >= least
        step = self.step * rms if self.step else float(size[told].mean())
        shift = min(max(0, math.floor(math.log2(step)) - 2), 28 - self.largest.bit_length())
        factor = min(max(1, round(math.ldexp(step, -shift))), 8)
        level = np.clip(np.rint(np.ldexp(size, -shift) / factor), 1, self.largest)
        level[~told] = 0
        return (np.copysign(level, delta) * factor).astype(np.int16), shift

    def encode(self, shapes: Shapes, shifts: Shifts, values: Values) -> bytes:
        """Divides by what all numbers share; `ValueError` for what was not rounded to levels."""
        scales = np.array([[-1], [0]], np.int16).repeat(len(shapes), axis=1)
        symbols = []
        for index, span in enumerate(tensors.spans(shapes).values()):
            held = values[span].astype(np.int32)
            common = math.gcd(*np.flatnonzero(np.bincount(np.abs(held))).tolist())
            if not common:
                continue
            twos = (common & -common).bit_length() - 1
            scales[:, index] = int(shifts[index]) + twos, common >> twos
            level = held // common
            if np.abs(level).max() > self.largest or not self._fits(*scales[:, index].tolist()):
                raise ValueError("the update has more levels than its codec: round it first")
            symbols.append((level + self.largest).astype(np.uint8))
        stream = rans.encode(np.concatenate(symbols), self._alphabet) if symbols else b""
        shift, factor = scales[0].astype(np.int8), scales[1].astype(np.uint8)
        return b"".join((shift.tobytes(), factor.tobytes(), stream))

    def decode(self, data: Data, shapes: Shapes) -> tuple[Shifts, Values]:
        """Decodes once to check, and again wherever the values are looked at."""
        head = 2 * len(shapes)
        if not head <= len(data) <= self.max_bytes(shapes):
            raise InvalidUpdate(f"{len(data)} bytes cannot be an update with these tensors")
        view = memoryview(data)
        shifts = np.frombuffer(view[: len(shapes)], np.int8)
        factors = np.frombuffer(view[len(shapes) : head], np.uint8)
        live: dict[str, Part] = {}
        count = 0
        for (name, span), shift, factor in zip(
            tensors.spans(shapes).items(), shifts.tolist(), factors.tolist(), strict=True
        ):
            if self._fits(shift, factor) and span.start < span.stop:
                place = slice(count, count + span.stop - span.start)
                live[name], count = Part(span, place, factor), place.stop
            elif (shift, factor) != (-1, 0):
                raise InvalidUpdate(f"{name}: shift or factor is out of range")
        if not live:
            if len(data) > head:
                raise InvalidUpdate("there is a stream, but no tensor for it")
            return np.zeros(len(shapes), np.int8), np.zeros(tensors.size(shapes), np.int16)

        symbols, stream = rans.decode(view[head:], count, self._alphabet)
        for name, part in live.items():
            there = np.bincount(symbols[part.stream]).nonzero()[0]
            if math.gcd(*(there - self.largest).tolist()) != 1:
                raise InvalidUpdate(f"{name}: the levels have a divisor in common")
        return np.maximum(shifts, 0), Levels(stream, list(live.values()), self.largest)

    def max_bytes(self, shapes: Shapes) -> int:
        """Far more than honest updates take, which are near their entropy."""
        return 2 * len(shapes) + rans.max_bytes(tensors.size(shapes), self._alphabet)

    @property
    def _alphabet(self) -> int:
        return 2 * self.largest + 1

    def _fits(self, shift: int, factor: int) -> bool:
        """Whether these are a scale: every level is an int32 and every value an int16."""
        return (
            0 <= shift <= 30
            and factor % 2 == 1
            and factor < 256
            and self.largest * factor << shift < 1 << 31
        )


class Part(NamedTuple):
    """A tensor with levels: its place in the flat run and in the stream, and its factor."""

    span: slice
    stream: slice
    factor: int


class Levels:
    """The values of a packed update, decoded where they are looked at."""

    def __init__(self, stream: rans.Stream, parts: list[Part], largest: int) -> None:
        self.stream, self.parts, self.largest = stream, parts, largest

    def __getitem__(self, block: slice) -> NDArray[np.int16]:
        values = np.zeros(block.stop - block.start, np.int16)
        inside = [
            (part, max(block.start, part.span.start), min(block.stop, part.span.stop))
            for part in self.parts
            if part.span.start < block.stop and block.start < part.span.stop
        ]
        if inside:
            (first, start, _), (last, _, stop) = inside[0], inside[-1]
            origin = first.stream.start + start - first.span.start
            symbols = self.stream[slice(origin, last.stream.start + stop - last.span.start)]
            for part, start, stop in inside:
                at = part.stream.start + start - part.span.start - origin
                told = symbols[at : at + stop - start].astype(np.int16) - np.int16(self.largest)
                values[start - block.start : stop - block.start] = told * np.int16(part.factor)
        return values


CODECS: dict[str, Codec] = {
    "plain": Plain(),
    "int8": Packed(largest=127, step=1 / 16, keep=1, dead=1 / 32),
    "int4": Packed(largest=7, step=1 / 2, keep=1, dead=1 / 4),
    "int2": Packed(largest=1, step=None, keep=1, dead=0.7),
    "sparse": Packed(largest=1, step=None, keep=0.08, dead=0.7),
}
"""The names a task definition may use."""
