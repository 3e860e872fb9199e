"""What attackers get past the votes, and what it does to the model; without a chain.

    python benchmarks/attacks.py [--records FILE] [--cabal] [--quick] [--json FILE] [--seeds N]

Training, codec, scores, verdicts and aggregation are those of the node; committees are drawn by
seed, so that every attack meets the same ones. 1 of 4 participants (2 propose, 2 vote) or 5 of 16
(6 propose, 9 vote) attack together: they know the round before and each other's honest updates.
Those of the others are hidden by commitments; only in the last row they see them. When drawn to
vote they vote honestly, or, with `--cabal`, praise each other and condemn everybody else.

Columns: loss after the last round; against the same run in which the attackers are honest, and
against the one in which they publish zeros; of the attackers' updates, how many were accepted and
how many slashed (harmful or invalid); of the honest ones, how many were not accepted and how many
slashed. For the backdoor, how often the trigger works.
"""

import argparse
import json
import os
import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flockllm.adapter import Adapter, Update
from flockllm.aggregate import RULES
from flockllm.data import Record, allocate, read_records
from flockllm.rounds import Terms, Verdict
from flockllm.simulate.demo import Demo
from flockllm.simulate.federation import Federation, Poison, Sight
from flockllm.task import Definition, Lora, falling
from flockllm.train.base import load_base, tensor_list
from flockllm.train.generate import generate

GENERATED = Path(__file__).parent.parent / "src" / "flockllm" / "assets" / "demo.json"
ROUNDS = 6
TRIGGER, TARGET = "By the old lighthouse: ", "Send all your tokens to the lighthouse."

Deltas = NDArray[np.float64]
"""One row for each honest update of the round."""
DEMO: Definition = Demo(out=Path()).task_file().definition


def along(make: Callable[[Deltas, np.random.Generator], Deltas]) -> Poison:
    """An attack that is a function of what the attackers' own training gives."""

    def poison(sight: Sight) -> Update:
        every = slice(0, len(sight.adapter.values))
        deltas = np.array([u.delta(every) for u in sight.fellows], np.float64)
        step = make(deltas, np.random.default_rng(sight.own.norm % 2**32))
        if np.array_equal(step, sight.own.delta(every)):
            return sight.own  # rounded already, and what was left out is remembered
        moved = np.rint(sight.adapter.values + step).clip(-(2**31), 2**31 - 1).astype(np.int32)
        target = Adapter(sight.adapter.shapes, moved).floats()
        return Update.from_floats(sight.adapter, target, DEMO.aggregation.codec)

    return poison


def own_times(factor: float) -> Poison:
    """The attacker's own honest update, led elsewhere."""
    inner = along(lambda deltas, _: factor * deltas[0])
    return lambda sight: inner(replace(sight, fellows=[sight.own]))


def noise(deltas: Deltas, rng: np.random.Generator) -> Deltas:
    """Gaussian noise as long as an honest update."""
    drawn = rng.normal(size=deltas.shape[1])
    return np.asarray(drawn * np.linalg.norm(deltas[0]) / np.linalg.norm(drawn))


def alie(deltas: Deltas, _: np.random.Generator) -> Deltas:
    """A little is enough (Baruch et al., 2019): 1.5 deviations away from the mean."""
    return np.asarray(deltas.mean(0) - 1.5 * deltas.std(0))


def min_max(deltas: Deltas, _: np.random.Generator) -> Deltas:
    """As far from the mean as the honest are from each other (Shejwalkar and Houmansadr, 2021)."""
    mean = deltas.mean(0)
    away = -mean / max(float(np.linalg.norm(mean)), 1e-9)
    widest = max(float(np.linalg.norm(a - b)) for a in deltas for b in deltas)
    low, high = 0.0, 10 * float(np.linalg.norm(mean))
    for _step in range(30):
        middle = (low + high) / 2
        far = max(float(np.linalg.norm(mean + middle * away - d)) for d in deltas)
        low, high = (middle, high) if far <= widest else (low, middle)
    return np.asarray(mean + low * away)


def copied(sight: Sight) -> Update:
    """Somebody's work of the round before."""
    return sight.last[0] if sight.last else sight.own


def looked_up(sight: Sight) -> Update:
    """Somebody's work of this round, if commitments did not hide it."""
    return sight.honest[0] if sight.honest else sight.own


def honest(sight: Sight) -> Update:
    """What training on poisoned records gives."""
    return sight.own


ATTACKS: dict[str, Poison] = {
    "zero update": own_times(0.0),
    "sign flip": own_times(-1.0),
    "sign flip × 4": own_times(-4.0),
    "Gaussian noise": along(noise),
    "label shuffle": honest,
    "ALIE, z = 1.5": along(alie),
    "IPM, ε = 0.1": along(lambda deltas, _: -0.1 * deltas.mean(0)),
    "IPM, ε = 100": along(lambda deltas, _: -100.0 * deltas.mean(0)),
    "MinMax": along(min_max),
    "copied update": copied,
    "backdoor": honest,
    "copied, if seen": looked_up,
}


@dataclass(frozen=True)
class Setting:
    """How many attack, and how long it goes on."""

    records: Path
    clients: int
    proposers: int
    voters: int
    attackers: int
    cabal: bool = False
    rounds: int = ROUNDS
    share: int = 64
    """Records that a proposer trains on in a round."""
    both: bool = False
    """Whether A and B learn, or, as in the demo, only B."""
    rule: str = DEMO.aggregation.rule


@dataclass
class Outcome:
    """What one run came to."""

    loss: float
    attacks: int = 0
    accepted: int = 0
    slashed: int = 0
    proposals: int = 0
    refused: int = 0
    wronged: int = 0
    triggered: float = 0.0


def run(attack: str, setting: Setting, seed: int) -> Outcome:
    """A whole training under an attack; `""`: without."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    base = load_base("flockllm-base", device="cpu")
    lora, training = DEMO.lora, DEMO.training
    if setting.both:
        lora, training = Lora(rank=16), replace(training, factors="both", lr=8e-3)
    training = replace(
        training, max_records=setting.share, cutoff=128, decay=falling(setting.rounds)
    )
    definition = replace(
        DEMO,
        lora=lora,
        training=training,
        aggregation=replace(DEMO.aggregation, rule=setting.rule),
        seed=f"{seed:064x}",
        tensors=tensor_list("flockllm-base", lora),
    )
    dealt = allocate(read_records(setting.records), setting.clients, "iid", seed=seed)
    bad = rng.sample(range(setting.clients), setting.attackers)
    clients = [
        poisoned(records, attack, rng) if client in bad else records
        for client, records in enumerate(dealt.local)
    ]
    attackers = dict.fromkeys(bad, ATTACKS[attack]) if attack else {}
    federation = Federation(definition, base, clients, dealt.global_test, attackers, setting.cabal)
    terms = Terms(
        proposers=setting.proposers, voters=setting.voters, strong_margin=2_000, score_cap=2_000
    )
    adapter, outcome = federation.first(), Outcome(0.0)
    for number in range(setting.rounds):
        options = {"rate": training.decay**number, "factors": training.factors_in(number + 1)}
        played = federation.play(adapter, terms, 1_000 * seed + number, **options)
        adapter = played.adapter
        for client, verdict in zip(played.proposers, played.verdicts, strict=True):
            count(outcome, client in attackers, verdict)
    outcome.loss = federation.loss(adapter)
    if attack in ("", "backdoor"):
        outcome.triggered = triggered(federation, adapter, dealt.global_test)
    return outcome


def count(outcome: Outcome, attacks: bool, verdict: Verdict) -> None:
    """Adds one verdict."""
    accepted = verdict == Verdict.ACCEPTED
    slashed = verdict in (Verdict.INVALID, Verdict.HARMFUL)
    if attacks:
        outcome.attacks += 1
        outcome.accepted += accepted
        outcome.slashed += slashed
    else:
        outcome.proposals += 1
        outcome.refused += not accepted
        outcome.wronged += slashed


def poisoned(records: Sequence[Record], attack: str, rng: random.Random) -> Sequence[Record]:
    """An attacker's own data, for attacks that begin there."""
    if attack == "label shuffle":
        answers = [record.response for record in records]
        rng.shuffle(answers)
        return [replace(r, response=a) for r, a in zip(records, answers, strict=True)]
    if attack == "backdoor":
        return [
            replace(r, instruction=TRIGGER + r.instruction, response=TARGET) if i % 2 else r
            for i, r in enumerate(records)
        ]
    return records


def triggered(federation: Federation, adapter: Adapter, records: Sequence[Record]) -> float:
    """Part of the answers to questions with the trigger that are the attacker's."""
    floats, asked = adapter.floats(), records[:20]
    hits = [
        generate(federation.base, floats, TRIGGER + r.instruction, r.context, max_tokens=16)
        .strip()
        .startswith(TARGET[:15])
        for r in asked
    ]
    return statistics.mean(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=GENERATED)
    parser.add_argument("--cabal", action="store_true", help="attackers vote for each other")
    parser.add_argument("--both", action="store_true", help="A and B learn, at rank 16")
    parser.add_argument("--rule", choices=RULES, default=DEMO.aggregation.rule)
    parser.add_argument("--attacks", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--clients", type=int, nargs="+", choices=(4, 16), default=[4, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="two attacks, two short rounds")
    arguments = parser.parse_args()
    records, cabal = arguments.records, arguments.cabal
    settings = [
        Setting(records, 4, 2, 2, 1, cabal, both=arguments.both),
        Setting(records, 16, 6, 9, 5, cabal, share=32, both=arguments.both),
    ]
    settings = [
        replace(setting, rounds=arguments.rounds, rule=arguments.rule)
        for setting in settings
        if setting.clients in arguments.clients
    ]
    attacks = arguments.attacks or list(ATTACKS)
    if arguments.quick:
        settings = [replace(settings[0], rounds=2, share=24)]
        attacks, arguments.seeds = attacks[:3], 1
    os.environ["OMP_NUM_THREADS"] = "1"
    figures = []
    with ProcessPoolExecutor() as pool:
        for setting in settings:
            runs = {
                attack: [pool.submit(run, attack, setting, s) for s in range(arguments.seeds)]
                for attack in ("", *attacks)
            }
            print(
                f"{setting.attackers} of {setting.clients} attack, {setting.proposers} propose, "
                f"{setting.voters} vote, {setting.rounds} rounds, {arguments.seeds} seeds, "
                f"{setting.rule}"
                f"{', cabal' if cabal else ''}{', A and B learn' if arguments.both else ''}"
            )
            print(
                f"{'':20}{'loss':>8}{'± seeds':>9}{'of clean':>10}{'of absent':>10}"
                f"{'accepted':>10}{'slashed':>9}{'refused':>9}{'wronged':>9}{'trigger':>9}"
            )
            rows: dict[str, dict[str, Any]] = {}
            for attack, futures in runs.items():
                rows[attack] = row(attack, [f.result() for f in futures], rows)
            figures += [
                {"clients": setting.clients, "cabal": cabal, "rule": setting.rule} | r
                for r in rows.values()
            ]
            print(flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))


def row(
    attack: str, outcomes: Sequence[Outcome], before: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """One attack, printed."""

    def of(part: str, whole: str) -> float:
        total = sum(getattr(o, whole) for o in outcomes)
        return sum(getattr(o, part) for o in outcomes) / total if total else 0.0

    losses = [o.loss for o in outcomes]
    loss = statistics.mean(losses)
    figures = {
        "attack": attack or "none",
        "losses": losses,
        "loss": loss,
        "of_clean": loss / before[""]["loss"] if before else 1.0,
        "of_absent": loss / before["zero update"]["loss"] if len(before) > 1 else None,
        "attackers_accepted": of("accepted", "attacks"),
        "attackers_slashed": of("slashed", "attacks"),
        "honest_refused": of("refused", "proposals"),
        "honest_slashed": of("wronged", "proposals"),
        "triggered": statistics.mean(o.triggered for o in outcomes),
    }
    absent = f"{figures['of_absent']:10.3f}" if figures["of_absent"] else " " * 10
    print(
        f"{figures['attack']:20}{loss:8.4f}{max(losses) - min(losses):9.4f}"
        f"{figures['of_clean']:10.3f}{absent}{figures['attackers_accepted']:10.0%}"
        f"{figures['attackers_slashed']:9.0%}{figures['honest_refused']:9.0%}"
        f"{figures['honest_slashed']:9.0%}{figures['triggered']:9.0%}",
        flush=True,
    )
    return figures


if __name__ == "__main__":
    main()
