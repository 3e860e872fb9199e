"""The work of a seat in a LoRA task: train, score, aggregate, all on integers.

Knows nothing of transactions: bytes and numbers in, bytes and numbers out.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import Adapter, Shapes, Update, cosines, max_bytes, quantise
from flockllm.aggregate import RULES
from flockllm.cid import cid_of
from flockllm.errors import InvalidUpdate, NotFound, StoreError
from flockllm.node.journal import Journal, copy_of
from flockllm.node.outside import Progress, Secret, Store, Task, Trainer, Work
from flockllm.rounds import INVALID, Duty, Outcome, Verdict, score
from flockllm.task import Definition

log = logging.getLogger(__name__)

TWIN_COSINE = 0.98
"""Updates of one round more alike than this share one idea; neither is paid for it."""


def twins(updates: Sequence[Update]) -> set[Update]:
    """Those that are all but the same as another one."""
    return {
        update
        for i, (update, row) in enumerate(zip(updates, cosines(updates), strict=True))
        if any(cosine > TWIN_COSINE for j, cosine in enumerate(row) if j != i)
    }


@dataclass
class Workbench:
    """One participant's trainer and store, with what it fetched in this round."""

    definition: Definition
    task: Task
    store: Store
    trainer: Trainer
    journal: Journal
    secret: Secret
    progress: Progress | None = None
    _adapters: dict[bytes, Adapter] = field(default_factory=dict)
    _updates: dict[bytes, Update | None] = field(default_factory=dict)
    _losses: dict[bytes, float] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """The task's tensor list."""
        return self.definition.tensors

    @property
    def adapter_bytes(self) -> int:
        """The length of every global adapter of the task."""
        return len(Adapter.zeros(self.shapes).to_bytes())

    def name(self, digest: bytes) -> str:
        """The CID of a global adapter."""
        return cid_of(digest, self.adapter_bytes)

    def train(self, round_: int, current: bytes) -> Work:
        """Trains from the current adapter; what was trained before a crash is taken again."""
        adapter = self.adapter(current)
        name = copy_of("update", round_, current)
        data = self.journal.kept(name)
        if data is None:
            seconds = time.perf_counter()
            seed = self.secret(round_, "train")
            progress = self._timed(round_, self.progress or log_quarters)
            recipe = self.definition.training
            trained = self.trainer.train(
                adapter.floats(),
                seed=seed,
                progress=progress,
                rate=recipe.decay ** (round_ - 1),
                factors=recipe.factors_in(round_),
            )
            codec = self.definition.aggregation.codec
            update, residual = quantise(adapter, trained, codec, self._residual())
            data = update.to_bytes(codec)
            self.journal.keep(name, data)
            self.journal.keep("residual", residual.tobytes())
            self._measured("trained", round_, seconds)
        seconds = time.perf_counter()
        update = Update.from_bytes(data, self.shapes, self.definition.aggregation.codec)
        before, after = self.loss(current), self.trainer.loss((adapter + update).floats())
        self._measured("checked", round_, seconds, loss_before=before, loss_after=after)
        return Work(data, before, after, score(before, after))

    def vote(
        self, round_: int, current: bytes, updates: Sequence[tuple[int, bytes, int]], until: float
    ) -> tuple[int, ...]:
        """Scores each published update alone, on this participant's held-out records.

        Args:
            round_: the running round.
            current: digest of the current adapter.
            updates: item, digest and size of each published update.
            until: Unix time after which what could not be fetched counts as missing.
        """
        scores = [0] * self.task.terms.proposers
        seconds = time.perf_counter()
        found = {item: self.update(digest, size, until) for item, digest, size in updates}
        fetched = time.perf_counter() - seconds
        seconds = time.perf_counter()
        alike = twins([update for update in found.values() if update])
        usable = {item: u for item, u in found.items() if u and not u.is_zero}
        adapter, before = self.adapter(current), self.loss(current)
        after = [self.trainer.loss((adapter + update).floats()) for update in usable.values()]
        for item in found.keys() - usable:
            scores[item] = INVALID
        for (item, update), loss in zip(usable.items(), after, strict=True):
            scores[item] = score(before, loss)
            if update in alike:
                log.warning("update %d has a twin: neither scores above 0", item)
                scores[item] = min(scores[item], 0)
        self._measured(
            "scored",
            round_,
            seconds,
            fetched=fetched,
            loss_before=before,
            losses=dict(zip(map(str, usable), after, strict=True)),
        )
        return tuple(scores)

    def aggregate(
        self, round_: int, current: bytes, accepted: Sequence[tuple[bytes, int, int]]
    ) -> Work:
        """Makes the next adapter of the accepted updates and measures it."""
        seconds = time.perf_counter()
        data = self._combine(self.adapter(current), accepted).to_bytes()
        self._measured("aggregated", round_, seconds, updates=len(accepted))
        seconds = time.perf_counter()
        before = self.loss(current)
        after = self.trainer.loss(Adapter.from_bytes(data, self.shapes).floats())
        self._measured("judged", round_, seconds, loss_before=before, loss_after=after)
        return Work(data, before, after, score(before, after))

    def adapter(self, digest: bytes) -> Adapter:
        """The global adapter of a digest: from the store, or else from what led to it."""
        if digest not in self._adapters:
            try:
                adapter = self._fetched_adapter(digest)
                log.info("global adapter %s fetched", self.name(digest))
            except NotFound:
                adapter = self._recomputed_adapter(digest)
            self._adapters = {digest: adapter}  # one round needs one
            self._losses = {}
        return self._adapters[digest]

    def loss(self, current: bytes) -> float:
        """The current adapter's loss, measured once a round."""
        if current not in self._losses:
            loss = self.trainer.loss(self.adapter(current).floats())
            self._losses[current] = loss
        return self._losses[current]

    def update(self, digest: bytes, size: int, until: float) -> Update | None:
        """A stranger's update, or None if it is not one or cannot be had in time."""
        if digest not in self._updates:
            self._updates[digest] = self._fetched_update(digest, size, until)
        return self._updates[digest]

    def _residual(self) -> NDArray[np.float32] | None:
        """What rounding left out of my last update, if it was not lost."""
        kept = self.journal.kept("residual")
        fits = kept is not None and len(kept) == 4 * sum(map(math.prod, self.shapes.values()))
        return np.frombuffer(kept, np.float32) if kept and fits else None

    def forget(self) -> None:
        """Frees what belonged to the last round."""
        self._updates.clear()

    def _fetched_update(self, digest: bytes, size: int, until: float) -> Update | None:
        codec = self.definition.aggregation.codec
        limit = max_bytes(self.shapes, codec)
        if size > limit:
            log.warning("update %s is no update: %d bytes, at most %d", _short(digest), size, limit)
            return None
        while True:
            left = until - time.time()
            try:
                data = self.store.get(digest, size, limit, seconds=max(1.0, left))
                return Update.from_bytes(data, self.shapes, codec)
            except NotFound as e:
                if left <= 0:
                    log.warning("update %s is not to be had: %s", _short(digest), e)
                    return None
                time.sleep(min(1.0, left))
            except (InvalidUpdate, StoreError) as e:  # a stranger's mistake is not ours
                log.warning("update %s is no update: %s", _short(digest), e)
                return None

    def _fetched_adapter(self, digest: bytes) -> Adapter:
        size = self.adapter_bytes
        return Adapter.from_bytes(self.store.get(digest, size, size), self.shapes)

    def _recomputed_adapter(self, digest: bytes) -> Adapter:
        """Rebuilds an adapter that no store has from the round that adopted it."""
        first = Adapter.initial(self.shapes, bytes.fromhex(self.definition.seed))
        if self.store.put(first.to_bytes()) == digest:
            return first
        for number in range(self.task.look(_NOBODY).state.round, 0, -1):
            result = self.task.result(number)
            if result.outcome == Outcome.ADOPTED and result.adapter_after == digest:
                accepted = [
                    (seat.digest, seat.size, seat.weight)
                    for seat in self.task.seats(number)
                    if seat.duty == Duty.DONE and seat.verdict == Verdict.ACCEPTED
                ]
                log.info("adapter %s is in no store: computing it again", _short(digest))
                adapter = self._combine(self.adapter(result.adapter_before), accepted)
                if self.store.put(adapter.to_bytes()) == digest:
                    return adapter
                raise StoreError(f"round {number} adopted an adapter that its updates do not give")
        raise NotFound(f"the global adapter {digest.hex()} is in no store and from no round")

    def _combine(self, current: Adapter, accepted: Sequence[tuple[bytes, int, int]]) -> Adapter:
        deadline = time.time() + 60
        updates = [self.update(digest, size, deadline) for digest, size, _ in accepted]
        usable = [u for u in updates if u is not None]
        if len(usable) != len(accepted):
            raise StoreError("an accepted update is in no store: the aggregate cannot be computed")
        weights = [weight for _, _, weight in accepted]
        return RULES[self.definition.aggregation.rule](current, usable, weights)

    def _timed(self, round_: int, progress: Progress) -> Progress:
        """Also records how long it took from here to the end of the first step."""
        began = time.perf_counter()

        def tell(step: int, steps: int, loss: float) -> None:
            if step == 1:
                self._measured("first step", round_, began)
            progress(step, steps, loss)

        return tell

    def _measured(self, event: str, round_: int, since: float, **values: object) -> None:
        seconds = time.perf_counter() - since
        self.journal.record(event, round=round_, seconds=seconds, **values)


def log_quarters(step: int, steps: int, loss: float) -> None:
    """Progress for a log that nobody watches: four lines a round."""
    if step * 4 // steps > (step - 1) * 4 // steps:
        log.info("training: step %d of %d, loss %.4f", step, steps, loss)


_NOBODY = "0x" + "00" * 20


def _short(digest: bytes) -> str:
    return digest.hex()[:12]
