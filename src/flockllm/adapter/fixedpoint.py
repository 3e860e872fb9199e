"""The global adapter: fixed-point numbers that are the same bits on every machine."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import tensors
from flockllm.adapter.tensors import Data, Shapes
from flockllm.errors import InvalidUpdate

if TYPE_CHECKING:
    from flockllm.adapter.update import Update

FRACTION_BITS = 24
"""An adapter's numbers count steps of 2⁻²⁴: the range is ±128 (Q8.24 in an int32)."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """The LoRA tensors that everybody starts a round from, in Q8.24."""

    shapes: Shapes
    values: NDArray[np.int32]
    """All tensors one after the other, in name order."""

    @classmethod
    def zeros(cls, shapes: Shapes) -> Self:
        """The adapter that changes nothing."""
        return cls(shapes, np.zeros(tensors.size(shapes), np.int32))

    @classmethod
    def initial(cls, shapes: Shapes, seed: bytes) -> Self:
        """The adapter of round one: A random, B zero, so that it too changes nothing.

        A is uniform in ±1/√(its columns), as PEFT draws it (Kaiming with a = √5): number i of a
        tensor is `⌊u · (2b + 1) / 2³²⌋ − b`, where b is the bound in Q8.24, rounded down, and u
        the i-th little-endian word of 32 bits of SHAKE-256(seed ‖ name).
        """
        adapter = cls.zeros(shapes)
        for name, tensor in adapter.tensors.items():
            if ".lora_A." in name:
                bound = math.isqrt((1 << 2 * FRACTION_BITS) // tensor.shape[1])
                words = hashlib.shake_256(seed + name.encode()).digest(4 * tensor.size)
                uniform = np.frombuffer(words, "<u4").astype(np.int64)
                drawn = (uniform * (2 * bound + 1) >> 32) - bound
                tensor[:] = drawn.reshape(tensor.shape)
        return adapter

    @classmethod
    def from_bytes(cls, data: Data, shapes: Shapes) -> Self:
        """Reads what `to_bytes` wrote.

        Raises:
            InvalidUpdate: anything but the one encoding of an adapter with these shapes.
        """
        held = tensors.payload(data, _header(shapes), 4 * tensors.size(shapes))
        return cls(shapes, np.frombuffer(held, "<i4"))

    def to_bytes(self) -> bytes:
        """The canonical file: equal adapters are equal bytes, hence equal digests."""
        return _header(self.shapes) + self.values.astype("<i4", copy=False).tobytes()

    @property
    def tensors(self) -> Mapping[str, NDArray[np.int32]]:
        """The numbers by tensor: views, in name order."""
        return tensors.named(self.values, self.shapes)

    def floats(self) -> dict[str, NDArray[np.float32]]:
        """What a model trains and runs on. Exact below 1; above, to 24 significant bits."""
        return tensors.named(np.ldexp(self.values.astype(np.float32), -FRACTION_BITS), self.shapes)

    @classmethod
    def from_floats(cls, floats: Mapping[str, NDArray[np.float32]], shapes: Shapes) -> Self:
        """The nearest adapter to tensors of a model; what is out of range goes to its end.

        Raises:
            InvalidUpdate: other names or shapes, or a number that is not finite.
        """
        flat = flatten(floats, shapes)
        scaled = np.rint(np.ldexp(flat.astype(np.float64), FRACTION_BITS))
        return cls(shapes, saturate(scaled))

    def __add__(self, update: "Update") -> "Adapter":
        """This adapter moved by an update; numbers stop at the ends of the range."""
        moved = np.empty_like(self.values)
        for block, _ in tensors.blocks(self.shapes):
            moved[block] = saturate(self.values[block].astype(np.int64) + update.delta(block))
        return Adapter(self.shapes, moved)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adapter):
            return NotImplemented
        return self.shapes == other.shapes and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]  # compared by numbers, of which there are millions


def saturate(wide: NDArray[Any]) -> NDArray[np.int32]:
    """Whole numbers as int32; what is out of range goes to its end."""
    narrow: NDArray[np.int32] = np.clip(wide, -(1 << 31), (1 << 31) - 1).astype(np.int32)
    return narrow


def flatten(floats: Mapping[str, NDArray[np.float32]], shapes: Shapes) -> NDArray[np.float32]:
    """Tensors of a model as one flat run.

    Raises:
        InvalidUpdate: other names or shapes, or a number that is not finite.
    """
    found = {name: tuple(tensor.shape) for name, tensor in floats.items()}
    if found != dict(shapes):
        differing = sorted(set(found.items()) ^ set(shapes.items()))
        raise InvalidUpdate(f"tensors differ from the task's: {differing[:4]}")
    flat = np.concatenate([floats[name].ravel() for name in sorted(shapes)]).astype(np.float32)
    if not np.isfinite(flat).all():
        raise InvalidUpdate("a trained tensor is not finite: training diverged")
    return flat


def _header(shapes: Shapes) -> bytes:
    return tensors.header({name: ("I32", shapes[name]) for name in sorted(shapes)})
