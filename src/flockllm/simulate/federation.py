"""Rounds without a chain, in one process: the same training, scores, verdicts and aggregation.

For questions about learning (which rule, which rate, which attack does harm) that need many runs.
Who is drawn comes from a seed, so that two recipes see the same committees.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import Adapter, Update, quantise
from flockllm.aggregate import RULES
from flockllm.data import Record
from flockllm.node.seat import twins
from flockllm.rounds import BPS, INVALID, Terms, Verdict, judge, score
from flockllm.task import Definition
from flockllm.train.base import Base, Floats
from flockllm.train.data import split, tokenize
from flockllm.train.loop import Trainer


@dataclass(frozen=True)
class Sight:
    """What an attacker can look at before it publishes."""

    adapter: Adapter
    """The current one."""
    own: Update
    """What honest training on its own records gives."""
    fellows: Sequence[Update]
    """The same of all attackers who propose in this round, itself among them."""
    last: Sequence[Update]
    """What was published in the round before."""
    honest: Sequence[Update]
    """The others' updates of this round: hidden by commitments, for what-if alone."""


Poison = Callable[[Sight], Update]
"""What an attacker publishes."""


@dataclass(frozen=True)
class Played:
    """One round."""

    adapter: Adapter
    proposers: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    scores: tuple[tuple[int, ...], ...]
    """By proposer: the voters' scores."""
    bytes_published: int


@dataclass
class Federation:
    """Clients with data of their own around one base model."""

    definition: Definition
    base: Base
    clients: Sequence[Sequence[Record]]
    test: Sequence[Record]
    """Records that nobody trains on."""
    attackers: Mapping[int, Poison] = field(default_factory=dict)
    cabal: bool = False
    """Whether attackers that vote praise each other and condemn the rest, or vote honestly."""
    feedback: bool = True
    """Whether clients remember what rounding left out, and tell it with their next update."""

    def __post_init__(self) -> None:
        self._trainers = [self._trainer(own, bytes([i])) for i, own in enumerate(self.clients)]
        self._test = self.measure(self.test)
        self._residuals: dict[int, NDArray[np.float32]] = {}
        self._last: Sequence[Update] = ()

    def first(self) -> Adapter:
        """The adapter that every run begins with."""
        return Adapter.initial(self.definition.tensors, bytes.fromhex(self.definition.seed))

    def loss(self, adapter: Adapter) -> float:
        """Loss on the global test set."""
        return self._test.loss(adapter.floats())

    def measure(self, records: Sequence[Record]) -> Trainer:
        """A trainer that only measures, on these records."""
        return Trainer(
            self.base, self.definition.lora, self.definition.training, [], self._tokens(records)
        )

    def train(self, adapter: Adapter, client: int, seed: int, **options: Any) -> Floats:
        """A client's local training from an adapter; `options` are those of `Trainer.train`."""
        return self._trainers[client].train(
            adapter.floats(), seed=f"{seed}/{client}".encode(), **options
        )

    def update(self, adapter: Adapter, client: int, seed: int, **options: Any) -> Update:
        """What that client publishes: its training, rounded by the codec."""
        moved = self.train(adapter, client, seed, **options)
        codec = self.definition.aggregation.codec
        update, left = quantise(adapter, moved, codec, self._residuals.get(client))
        if self.feedback:
            self._residuals[client] = left
        return update

    def combine(
        self, adapter: Adapter, updates: Sequence[Update], weights: Sequence[int]
    ) -> Adapter:
        """The next adapter by the definition's rule; the same one if there is no update."""
        return RULES[self.definition.aggregation.rule](adapter, updates, weights)

    def play(self, adapter: Adapter, terms: Terms, seed: int, **options: Any) -> Played:
        """One round: draw, train, score, judge, aggregate.

        Args:
            adapter: the current one.
            terms: seats and margins.
            seed: of the committee, and of training.
            options: of `Trainer.train`.
        """
        drawn = random.Random(seed).sample(range(len(self.clients)), terms.committee)
        proposers, voters = drawn[: terms.proposers], drawn[terms.proposers :]
        updates = [self.update(adapter, client, seed, **options) for client in proposers]
        by_client = dict(zip(proposers, updates, strict=True))
        fellows = [update for client, update in by_client.items() if client in self.attackers]
        honest = [update for client, update in by_client.items() if client not in self.attackers]
        for at, client in enumerate(proposers):
            if client in self.attackers:
                sight = Sight(adapter, updates[at], fellows, self._last, honest)
                updates[at] = self.attackers[client](sight)
        self._last = updates

        scores = [self._scores(adapter, updates, voter, proposers) for voter in voters]
        by_item = tuple(zip(*scores, strict=True))
        judged = [judge(terms, item) for item in by_item]
        accepted = [
            (update, judgement.weight)
            for update, judgement in zip(updates, judged, strict=True)
            if judgement.verdict == Verdict.ACCEPTED
        ]
        after = self.combine(adapter, [u for u, _ in accepted], [w for _, w in accepted])
        codec = self.definition.aggregation.codec
        return Played(
            after,
            tuple(proposers),
            tuple(j.verdict for j in judged),
            by_item,
            sum(len(u.to_bytes(codec)) for u in updates),
        )

    def _scores(
        self, adapter: Adapter, updates: Sequence[Update], voter: int, proposers: Sequence[int]
    ) -> list[int]:
        """A voter's scores: an honest one's as `Workbench.vote` gives them."""
        if self.cabal and voter in self.attackers:
            return [BPS if proposer in self.attackers else -BPS for proposer in proposers]
        trainer = self._trainers[voter]
        before = trainer.loss(adapter.floats())
        scores = [
            INVALID if u.is_zero else score(before, trainer.loss((adapter + u).floats()))
            for u in updates
        ]
        alike = twins(updates)
        return [min(0, s) if u in alike else s for u, s in zip(updates, scores, strict=True)]

    def _trainer(self, records: Sequence[Record], seed: bytes) -> Trainer:
        evaluation = self.definition.evaluation
        heldout = max(evaluation.least, round(len(records) * evaluation.heldout))
        train, test = split(records, min(heldout, evaluation.most), seed)
        definition = self.definition
        return Trainer(
            self.base,
            definition.lora,
            definition.training,
            self._tokens(train),
            self._tokens(test),
        )

    def _tokens(self, records: Sequence[Record]) -> Any:
        training = self.definition.training
        return tokenize(
            records,
            self.base.tokenizer,
            self.definition.model.template,
            training.cutoff,
            training.loss_on,
        )
