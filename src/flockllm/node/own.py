"""The work of a seat in a task with own model code: parameters are bytes that only it reads."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flockllm.cid import cid_of, digest_of
from flockllm.errors import NotFound, SandboxError, StoreError
from flockllm.node.journal import Journal, copy_of
from flockllm.node.outside import Secret, Store, Task, Work
from flockllm.rounds import BPS, INVALID

log = logging.getLogger(__name__)

WORST = 32_767


class Model(Protocol):
    """A `FlockModel` behind its sandbox; every call may raise `SandboxError`."""

    def train(self, parameters: bytes | None) -> bytes: ...  # noqa: D102
    def evaluate(self, parameters: bytes | None) -> float: ...  # noqa: D102
    def aggregate(self, parameters_list: Sequence[bytes]) -> bytes: ...  # noqa: D102


def gain(before: float, after: float) -> int:
    """The relative change in bps of a measure of which more is better, within ±32 767.

    The measure may be negative, as minus a loss is; from 0 any change is the most there is.
    """
    change = BPS * (after - before) / abs(before) if before else (after > 0) - (after < 0)
    if not before:
        change *= WORST
    return round(max(-WORST, min(WORST, change)))


@dataclass
class OwnBench:
    """One participant's sandboxes and store. The untrained model is the empty file."""

    task: Task
    store: Store
    trainer: Model
    """Sees the records that are trained on."""
    judge: Model
    """Sees the held-out records; strangers' parameters go only here."""
    journal: Journal
    secret: Secret
    limit: int
    """Bytes of parameters at the most."""
    _content: dict[bytes, bytes | None] = field(default_factory=dict)
    _measured: dict[bytes, float] = field(default_factory=dict)

    def train(self, round_: int, current: bytes) -> Work:
        """Trains from the current parameters, and measures on the held-out records."""
        start = self._parameters(current)
        name = copy_of("update", round_, current)
        data = self.journal.kept(name)
        if data is None:
            began = time.perf_counter()
            data = self.trainer.train(start)
            self.journal.keep(name, data)
            self._record("trained", round_, began)
        began = time.perf_counter()
        before, after = self._measure(current), self.judge.evaluate(data)
        self._record("checked", round_, began)
        return Work(data, before, after, gain(before, after))

    def vote(
        self, round_: int, current: bytes, updates: Sequence[tuple[int, bytes, int]], until: float
    ) -> tuple[int, ...]:
        """Scores each published update alone; what the code cannot use is INVALID."""
        began = time.perf_counter()
        scores, before = [0] * self.task.terms.proposers, self._measure(current)
        for item, digest, size in updates:
            data = self._fetched(digest, size, until)
            try:
                scores[item] = INVALID if not data else gain(before, self.judge.evaluate(data))
            except SandboxError as e:
                log.warning("update %s cannot be used: %s", digest.hex()[:12], e)
                scores[item] = INVALID
        self._record("scored", round_, began)
        return tuple(scores)

    def aggregate(
        self, round_: int, current: bytes, accepted: Sequence[tuple[bytes, int, int]]
    ) -> Work:
        """Has the code make one of the accepted parameters."""
        began = time.perf_counter()
        found = [self._fetched(digest, size, time.time() + 60) for digest, size, _ in accepted]
        usable = [data for data in found if data is not None]
        if len(usable) != len(found):
            raise StoreError("an accepted update is in no store: the aggregate cannot be computed")
        data = self.judge.aggregate(usable)
        self._record("aggregated", round_, began)
        began = time.perf_counter()
        before, after = self._measure(current), self.judge.evaluate(data)
        self._record("judged", round_, began)
        return Work(data, before, after, gain(before, after))

    def name(self, digest: bytes) -> str:
        """The CID of parameters whose size is known, else their digest."""
        data = self._content.get(digest)
        return cid_of(digest, len(data)) if data is not None else digest.hex()

    def forget(self) -> None:
        """Frees what belonged to the last round."""
        self._content.clear()
        self._measured.clear()

    def _parameters(self, digest: bytes) -> bytes | None:
        if digest == digest_of(b""):
            return None
        if digest not in self._content:
            self._content[digest] = self.store.get(digest, None, self.limit)
        return self._content[digest]

    def _measure(self, current: bytes) -> float:
        if current not in self._measured:
            self._measured[current] = self.judge.evaluate(self._parameters(current))
        return self._measured[current]

    def _fetched(self, digest: bytes, size: int, until: float) -> bytes | None:
        """Published parameters, or None if they are too large or not to be had in time."""
        if digest not in self._content:
            self._content[digest] = None
            while size <= self.limit:
                left = until - time.time()
                try:
                    found = self.store.get(digest, size, self.limit, seconds=max(1.0, left))
                    self._content[digest] = found
                    break
                except NotFound:
                    if left <= 0:
                        break
                    time.sleep(min(1.0, left))
                except StoreError as e:
                    log.warning("update %s: %s", digest.hex()[:12], e)
                    break
        return self._content[digest]

    def _record(self, event: str, round_: int, began: float) -> None:
        self.journal.record(event, round=round_, seconds=time.perf_counter() - began)
