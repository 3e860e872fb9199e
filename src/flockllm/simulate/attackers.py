"""Participants that do harm, to see that it does not pay."""

import pickle
from dataclasses import dataclass, replace

import numpy as np

from flockllm.adapter import Update
from flockllm.node import Workbench
from flockllm.node.outside import Work

SCALE = 4.0
"""How much longer than the honest update the poisoned one is."""


@dataclass
class SignFlipper(Workbench):
    """Publishes what an honest proposer would, turned around and scaled up; votes honestly."""

    def train(self, round_: int, current: bytes) -> Work:
        """Trains like everybody else, then leads the other way and claims that it helps."""
        honest = super().train(round_, current)
        codec = self.definition.aggregation.codec
        adapter = self.adapter(current)
        start = adapter.floats()
        learned = (adapter + Update.from_bytes(honest.data, self.shapes, codec)).floats()
        poison = {
            name: start[name] - np.float32(SCALE) * (learned[name] - start[name]) for name in start
        }
        data = Update.from_floats(adapter, poison, codec).to_bytes(codec)
        return replace(honest, data=data, score=5_000)


@dataclass
class Vandal(Workbench):
    """Publishes bytes that are no update: a pickle, as the original's clients would load."""

    def train(self, round_: int, current: bytes) -> Work:
        """Does no work and claims that it helps."""
        return Work(pickle.dumps({"round": round_, "run": "me"}), 1.0, 0.5, 5_000)


ATTACKS: dict[str, type[Workbench]] = {"sign-flip": SignFlipper, "vandal": Vandal}
"""What a simulated attacker can do, by name."""
