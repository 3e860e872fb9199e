"""What a proposer publishes: how far training moved the global adapter, as integers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import tensors
from flockllm.adapter.codecs import CODECS
from flockllm.adapter.fixedpoint import FRACTION_BITS, Adapter, flatten
from flockllm.adapter.tensors import Data, Shapes, Values


@dataclass(frozen=True, eq=False)
class Update:
    """A change to the global adapter: `values << shift`, with one shift for each tensor."""

    shapes: Shapes
    shifts: NDArray[np.int8]
    """One for each tensor, in name order."""
    values: Values
    """All tensors one after the other, in name order."""

    @classmethod
    def from_floats(
        cls, current: Adapter, trained: Mapping[str, NDArray[np.float32]], codec: str = "plain"
    ) -> "Update":
        """How far `trained` is from `current`, rounded to what `codec` can tell.

        Raises:
            InvalidUpdate: other tensors than the adapter's, or a number that is not finite.
        """
        return quantise(current, trained, codec)[0]

    @classmethod
    def from_bytes(cls, data: Data, shapes: Shapes, codec: str) -> Self:
        """Reads a stranger's bytes, believing only the task's `shapes` and `codec`.

        Costs no more than the tensors take, whatever the bytes are; `data` is kept, not copied.

        Raises:
            InvalidUpdate: anything but the one encoding of an update with these shapes.
        """
        return cls(shapes, *CODECS[codec].decode(data, shapes))

    def to_bytes(self, codec: str) -> bytes:
        """The canonical file: equal updates are equal bytes, hence equal digests."""
        return CODECS[codec].encode(self.shapes, self.shifts, self.values)

    def delta(self, block: slice) -> NDArray[np.int32]:
        """What is added to a block of the flat run."""
        delta = self.values[block].astype(np.int32)
        for index, part in tensors.parts(self.shapes, block):
            delta[part.start - block.start : part.stop - block.start] <<= int(self.shifts[index])
        return delta

    def deltas(self) -> dict[str, NDArray[np.int32]]:
        """What is added, by tensor."""
        return tensors.named(self.delta(slice(0, tensors.size(self.shapes))), self.shapes)

    @cached_property
    def norm(self) -> int:
        """The L2 norm of the delta, rounded down: exact integers."""
        return math.isqrt(self._dot(self))

    @property
    def is_zero(self) -> bool:
        """Whether nothing is changed; such an update is scored INVALID."""
        return self.norm == 0

    def cosine(self, other: "Update") -> float:
        """How alike two updates are, in [−1, 1]; 0 where one is zero."""
        if self.is_zero or other.is_zero:
            return 0.0
        return self._dot(other) / math.sqrt(self._dot(self) * other._dot(other))

    def _dot(self, other: "Update") -> int:
        """Σ delta · delta, exactly."""
        dot, total = _WholeDot(), 0
        for block, inside in tensors.blocks(self.shapes):
            mine = self.values[block]
            theirs = mine if other is self else other.values[block]
            for index, part in inside:
                here = slice(part.start - block.start, part.stop - block.start)
                shift = int(self.shifts[index]) + int(other.shifts[index])
                total += dot(mine[here], None if other is self else theirs[here]) << shift
        return total


def quantise(
    current: Adapter,
    trained: Mapping[str, NDArray[np.float32]],
    codec: str,
    residual: NDArray[np.float32] | None = None,
) -> tuple[Update, NDArray[np.float32]]:
    """The update that leads from `current` towards `trained`, and what rounding left out.

    What was left out, flat and in steps of the adapter's numbers, is told with the proposer's
    next update when it is given back as `residual` (error feedback, Karimireddy et al.,
    arXiv:1901.09847). Losing it loses nothing else.

    Raises:
        InvalidUpdate: other tensors than the adapter's, or a number that is not finite.
    """
    shapes = current.shapes
    values = np.empty(tensors.size(shapes), np.int16)
    shifts = np.zeros(len(shapes), np.int8)
    moved = flatten(trained, shapes)
    left = np.zeros_like(moved) if residual is None else residual.copy()
    for index, span in enumerate(tensors.spans(shapes).values()):
        start = np.ldexp(current.values[span].astype(np.float32), -FRACTION_BITS)
        step = moved[span].astype(np.float64) - start.astype(np.float64)
        delta = np.ldexp(step, FRACTION_BITS) + left[span].astype(np.float64)
        values[span], shifts[index] = CODECS[codec].round(delta)
        left[span] = delta - np.ldexp(values[span].astype(np.float64), int(shifts[index]))
    return Update(shapes, shifts, values), left


class _WholeDot:
    """Σ a · b in float64: every partial sum is a whole number < 2⁵³, so nothing is rounded.

    BLAS gets strips too short to start threads, which would fight those of the aggregation.
    """

    def __init__(self) -> None:
        self._wide = np.zeros((2, 8, 4096))

    def __call__(self, a: NDArray[np.int16], b: NDArray[np.int16] | None) -> int:
        """Σ a · b, or Σ a² without b."""
        total = 0
        for start in range(0, len(a), 8 * 4096):
            piece = slice(start, start + 8 * 4096)
            x = self._widen(0, a[piece])
            y = x if b is None else self._widen(1, b[piece])
            total += int(np.vecdot(x, y).sum())
        return total

    def _widen(self, place: int, piece: NDArray[np.int16]) -> NDArray[np.float64]:
        strips: NDArray[np.float64] = self._wide[place]
        flat = strips.reshape(-1)
        flat[: len(piece)] = piece
        flat[len(piece) :] = 0
        return strips
