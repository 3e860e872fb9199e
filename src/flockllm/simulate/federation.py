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
from flockllm.node.seat import TWIN_COSINE
from flockllm.rounds import INVALID, Terms, Verdict, judge, score
from flockllm.task import Definition
from flockllm.train.base import Base
from flockllm.train.data import split, tokenize
from flockllm.train.loop import Trainer

Poison = Callable[[Adapter, Update, Sequence[Update]], Update]
"""What an attacker publishes: from the current adapter, its honest update, and the others'."""


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

    def __post_init__(self) -> None:
        self._trainers = [self._trainer(own, bytes([i])) for i, own in enumerate(self.clients)]
        self._test = self.measure(self.test)
        self._residuals: dict[int, NDArray[np.float32]] = {}

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

    def play(
        self, adapter: Adapter, terms: Terms, seed: int, *, vote: bool = True, **train: Any
    ) -> Played:
        """One round: draw, train, score, judge, aggregate.

        Args:
            adapter: the current one.
            terms: seats and margins.
            seed: of the committee, and of training.
            vote: without it, everything is accepted.
            train: passed on to `Trainer.train`.
        """
        drawn = random.Random(seed).sample(range(len(self.clients)), terms.committee)
        proposers, voters = drawn[: terms.proposers], drawn[terms.proposers :]
        codec = self.definition.aggregation.codec
        updates = []
        for client in proposers:
            moved = self._trainers[client].train(adapter.floats(), seed=seed, **train)
            update, self._residuals[client] = quantise(
                adapter, moved, codec, self._residuals.get(client)
            )
            updates.append(update)
        for at, client in enumerate(proposers):
            if client in self.attackers:
                others = [u for i, u in enumerate(updates) if proposers[i] not in self.attackers]
                updates[at] = self.attackers[client](adapter, updates[at], others)

        scores = [self._scores(adapter, updates, voter) for voter in voters] if vote else []
        by_item = tuple(zip(*scores, strict=True)) if vote else ((),) * len(updates)
        judged = [judge(terms, item) for item in by_item]
        accepted = [
            (update, judgement.weight)
            for update, judgement in zip(updates, judged, strict=True)
            if not vote or judgement.verdict == Verdict.ACCEPTED
        ]
        if accepted:
            rule = RULES[self.definition.aggregation.rule]
            adapter = rule(adapter, [u for u, _ in accepted], [w for _, w in accepted])
        return Played(
            adapter,
            tuple(proposers),
            tuple(j.verdict for j in judged),
            by_item,
            sum(len(u.to_bytes(codec)) for u in updates),
        )

    def _scores(self, adapter: Adapter, updates: Sequence[Update], voter: int) -> list[int]:
        """An honest voter's scores, as `Workbench.vote` gives them."""
        trainer = self._trainers[voter]
        before = trainer.loss(adapter.floats())
        scores = [
            INVALID if u.is_zero else score(before, trainer.loss((adapter + u).floats()))
            for u in updates
        ]
        for one in range(len(updates)):
            for other in range(one):
                if updates[one].cosine(updates[other]) > TWIN_COSINE:
                    scores[one], scores[other] = min(scores[one], 0), min(scores[other], 0)
        return scores

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
