"""What a node needs of the outside. `cli` hands it the real parts, tests hand it small ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flockllm.rounds import Address, RoundResult, Seat, Terms, View

Floats = Mapping[str, NDArray[np.float32]]
"""An adapter as training sees it: float32 tensors by PEFT's names."""

Progress = Callable[[int, int, float], None]
"""Told after each step: steps done, steps in all, loss."""


class Head(Protocol):
    """The newest block."""

    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102


class Blocks(Protocol):
    """The chain as a clock."""

    def head(self) -> Head:
        """The newest block that counts."""

    def heads(self, timeout: float) -> Head:
        """Waits for a block newer than the last one seen, at most `timeout` seconds."""


class Task(Protocol):
    """The contract. Calls that change it wait until they count, or raise `Reverted`."""

    @property
    def address(self) -> Address: ...  # noqa: D102
    @property
    def chain_id(self) -> int: ...  # noqa: D102
    @property
    def terms(self) -> Terms: ...  # noqa: D102

    def look(self, who: Address, block: int | None = None) -> View: ...  # noqa: D102
    def seats(self, round_: int) -> Sequence[Seat]: ...  # noqa: D102
    def result(self, round_: int) -> RoundResult: ...  # noqa: D102
    def top_up(self, amount: int) -> object: ...  # noqa: D102
    def reactivate(self) -> object: ...  # noqa: D102
    def open_round(self) -> object: ...  # noqa: D102
    def draw(self) -> object: ...  # noqa: D102
    def commit_update(self, round_: int, commitment: bytes) -> object: ...  # noqa: D102
    def abstain(self, round_: int) -> object: ...  # noqa: D102
    def publish_update(  # noqa: D102
        self, round_: int, digest: bytes, size: int, salt: bytes
    ) -> object: ...
    def commit_vote(self, round_: int, commitment: bytes) -> object: ...  # noqa: D102
    def reveal_vote(self, round_: int, scores: int, salt: bytes) -> object: ...  # noqa: D102
    def tally(self, limit: int) -> object: ...  # noqa: D102
    def attest(self, round_: int, digest: bytes) -> object: ...  # noqa: D102
    def advance(self) -> object: ...  # noqa: D102
    def settle(self, round_: int, who: Address) -> object: ...  # noqa: D102


class Store(Protocol):
    """Content by digest; what comes back has been checked."""

    def put(self, data: bytes) -> bytes: ...  # noqa: D102
    def get(  # noqa: D102
        self, digest: bytes, size: int | None, limit: int, *, seconds: float = 300
    ) -> bytes: ...


class Trainer(Protocol):
    """Trains and measures adapters on one participant's records."""

    def train(
        self,
        start: Floats,
        *,
        seed: bytes,
        progress: Progress | None = None,
        rate: float = 1.0,
        factors: str = "AB",
    ) -> Floats:
        """One round's local training, from `start`; the same seed gives the same adapter.

        `rate` is a factor on the recipe's learning rate, `factors` what learns of B A.
        """

    def loss(self, adapter: Floats) -> float:
        """Token-mean loss on the held-out records: exactly the same each time."""


Secret = Callable[[int, str], bytes]
"""32 bytes for a round and a purpose, from the participant's key alone."""


@dataclass(frozen=True)
class Work:
    """Something trained or aggregated, and what its maker thinks of it."""

    data: bytes
    before: float
    """How the current adapter does on the own held-out records."""
    after: float
    score: int
    """The change in bps, positive is better."""


class Bench(Protocol):
    """The work of seats, whatever is trained: `seat` for LoRA, `own` for own model code."""

    store: Store

    def secret(self, round_: int, purpose: str, /) -> bytes:
        """32 bytes for a round and a purpose, from the participant's key alone."""

    def train(self, round_: int, current: bytes) -> Work:
        """What to publish; what was trained before a crash is taken again."""

    def vote(
        self, round_: int, current: bytes, updates: Sequence[tuple[int, bytes, int]], until: float
    ) -> tuple[int, ...]:
        """A score for each published update (item, digest, size), fetched before `until`."""

    def aggregate(
        self, round_: int, current: bytes, accepted: Sequence[tuple[bytes, int, int]]
    ) -> Work:
        """The next global adapter, of the accepted updates (digest, size, weight)."""

    def name(self, digest: bytes) -> str:
        """How people call a global adapter."""

    def forget(self) -> None:
        """A round is over."""
