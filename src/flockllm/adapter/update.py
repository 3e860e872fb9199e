"""What a proposer publishes: how far training moved the global adapter, as integers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import tensors
from flockllm.adapter.codecs import CODECS
from flockllm.adapter.fixedpoint import FRACTION_BITS, Adapter, flatten
from flockllm.adapter.tensors import Data, Shapes, Values

PIECE = 8192
"""Numbers that are multiplied at a time: too few for BLAS to start threads, which would fight those
of the aggregation."""


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
        return math.isqrt(inner_products([self])[0][0])

    @property
    def is_zero(self) -> bool:
        """Whether nothing is changed; such an update is scored INVALID."""
        return self.norm == 0


def inner_products(updates: Sequence[Update]) -> list[list[int]]:
    """Σ delta · delta of every two updates of one task, exactly; each is decoded once.

    In float64, where every partial sum is a whole number < 2⁵³: nothing is rounded.
    """
    count = len(updates)
    sums = [[0] * count for _ in updates]
    wide = np.zeros((count, PIECE))
    for block, inside in tensors.blocks(updates[0].shapes):
        rows = [update.values[block] for update in updates]
        for index, part in inside:
            partial = np.zeros((count, count))
            for start in range(part.start - block.start, part.stop - block.start, PIECE):
                stop = min(start + PIECE, part.stop - block.start)
                for into, row in zip(wide, rows, strict=True):
                    into[: stop - start] = row[start:stop]
                piece = wide[:, : stop - start]
                partial += piece @ piece.T if count > 1 else piece[0] @ piece[0]  # dot is faster
            shifts = [int(update.shifts[index]) for update in updates]
            for one, other in product(range(count), repeat=2):
                sums[one][other] += int(partial[one, other]) << shifts[one] + shifts[other]
    return sums


def cosines(updates: Sequence[Update]) -> list[list[float]]:
    """How alike every two updates are, in [−1, 1]; 0 where one is zero.

    What it costs is reading them, so each one's norm is kept too.
    """
    sums = inner_products(updates) if updates else []
    for i, update in enumerate(updates):
        vars(update)["norm"] = math.isqrt(sums[i][i])
    return [
        [s and s / math.sqrt(sums[i][i] * sums[j][j]) for j, s in enumerate(row)]
        for i, row in enumerate(sums)
    ]


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
