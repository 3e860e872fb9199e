"""What a proposer publishes: how far training moved the global adapter, as integers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import tensors
from flockllm.adapter.codecs import CODECS, INT16
from flockllm.adapter.fixedpoint import BLOCK, FRACTION_BITS, Adapter, flatten
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
    def from_floats(cls, current: Adapter, trained: Mapping[str, NDArray[np.float32]]) -> Self:
        """How far `trained` is from `current`, rounded to the nearest update of full precision.

        Raises:
            InvalidUpdate: other tensors than the adapter's, or a number that is not finite.
        """
        shapes = current.shapes
        values = np.empty(tensors.size(shapes), np.int16)
        shifts = np.zeros(len(shapes), np.int8)
        moved = flatten(trained, shapes)
        for index, span in enumerate(tensors.spans(shapes).values()):
            start = np.ldexp(current.values[span].astype(np.float32), -FRACTION_BITS)
            delta = np.ldexp(moved[span].astype(np.float64) - start, FRACTION_BITS)
            largest = float(np.abs(delta).max(initial=0))
            while np.rint(math.ldexp(largest, -int(shifts[index]))) > INT16 and shifts[index] < 16:
                shifts[index] += 1
            rounded = np.rint(np.ldexp(delta, -int(shifts[index])))
            values[span] = np.clip(rounded, -INT16, INT16)
        return cls(shapes, shifts, values)

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

    def delta(self, index: int, span: slice) -> NDArray[np.int32]:
        """What is added to the numbers at `span`, which lies in tensor `index`."""
        return self.values[span].astype(np.int32) << int(self.shifts[index])

    def deltas(self) -> dict[str, NDArray[np.int32]]:
        """What is added, by tensor."""
        return {
            name: self.delta(index, span).reshape(self.shapes[name])
            for index, (name, span) in enumerate(tensors.spans(self.shapes).items())
        }

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
        """Σ delta · delta. Every partial sum is a whole number < 2⁵³, so floats are exact."""
        total = 0
        for index, span in tensors.blocks(self.shapes, BLOCK):
            a = self.values[span].astype(np.float64)
            b = a if other is self else other.values[span].astype(np.float64)
            total += int(a @ b) << int(self.shifts[index]) + int(other.shifts[index])
        return total
