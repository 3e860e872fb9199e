"""Rounds without a chain, on the packaged model: who is believed, and what an average keeps."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from network import DEMO

from flockllm.adapter import Update, cosines
from flockllm.data import allocate, read_records
from flockllm.rounds import Terms, Verdict
from flockllm.simulate.demo import Demo
from flockllm.simulate.federation import Federation, Sight
from flockllm.task import Lora
from flockllm.train.base import load_base, tensor_list

TERMS = Terms(proposers=2, voters=2, strong_margin=2_000, score_cap=2_000)
SEED = 7
FIRST, SECOND, VOTER, _ = random.Random(SEED).sample(range(4), 4)
"""Who is drawn by this seed: two proposers, two voters."""


@pytest.fixture(scope="module")
def base():
    """The packaged model, shared by all rounds."""
    return load_base("flockllm-base", device="cpu")


@pytest.fixture
def federation(base):
    """Makes four clients with like data, some of them attackers."""

    def make(*attackers, cabal=False, factors="B", lr=5e-2):
        definition = Demo(out=Path()).task_file().definition
        lora = Lora(rank=16)
        definition = replace(
            definition,
            lora=lora,
            training=replace(definition.training, factors=factors, lr=lr),
            tensors=tensor_list("flockllm-base", lora),
        )
        dealt = allocate(read_records(DEMO)[::6], 4, "iid")
        turn = dict.fromkeys(attackers, turned)
        return Federation(definition, base, dealt.local, dealt.global_test[:20], turn, cabal)

    return make


def turned(sight):
    """The opposite of what was learned."""
    return Update(sight.own.shapes, sight.own.shifts, -sight.own.values[:])


def test_an_honest_round_lowers_the_loss_and_repeats_itself(federation):
    """The same seed draws the same committee and trains to the same bytes."""
    one, again = federation(), federation()
    played = one.play(one.first(), TERMS, SEED, factors="B")
    assert played.proposers == (FIRST, SECOND)
    assert set(played.verdicts) == {Verdict.ACCEPTED}
    assert one.loss(played.adapter) < one.loss(one.first())
    assert (
        again.play(again.first(), TERMS, SEED, factors="B").adapter.to_bytes()
        == played.adapter.to_bytes()
    )


def test_a_turned_update_is_harmful_where_only_b_learns(federation):
    """And it leaves no trace: the next adapter is that of the honest proposer alone."""
    bad = federation(FIRST)
    played = bad.play(bad.first(), TERMS, SEED, factors="B")
    assert played.verdicts == (Verdict.HARMFUL, Verdict.ACCEPTED)

    good = federation()
    alone = good.update(good.first(), SECOND, SEED, factors="B")
    expected = good.combine(good.first(), [alone], [1])
    assert (played.adapter.values == expected.values).all()


def test_why_a_and_b_are_not_averaged_by_default(federation):
    """With both signs turned B A is what it was: accepted, and an honest update is wiped out."""
    bad = federation(FIRST, factors="both", lr=8e-3)
    first = bad.first()
    played = bad.play(first, TERMS, SEED, factors="AB")
    assert set(played.verdicts) == {Verdict.ACCEPTED}

    good = federation(factors="both", lr=8e-3)
    updates = [good.update(first, client, SEED, factors="AB") for client in (FIRST, SECOND)]
    alone = good.combine(first, updates[1:], [1])
    assert bad.loss(played.adapter) > good.loss(alone)
    assert cosines([updates[0], turned(Sight(first, updates[0], [], [], []))])[0][1] < -0.99


def test_the_average_of_b_is_the_average_of_the_product(federation):
    """(B₁ + B₂) / 2 · A = (B₁ A + B₂ A) / 2, but for the rounding to whole steps."""
    fed = federation()
    first = fed.first()
    updates = [fed.update(first, client, SEED, factors="B") for client in (FIRST, SECOND)]
    shorter = min(update.norm for update in updates)
    mean = fed.combine(first, updates, []).floats()
    names = [name for name in mean if ".lora_A." in name]
    for a in names:
        b = a.replace(".lora_A.", ".lora_B.")
        each = [(first + u).floats()[b] * (shorter / u.norm) @ first.floats()[a] for u in updates]
        np.testing.assert_allclose(mean[b] @ mean[a], sum(each) / 2, atol=1e-5)


def test_one_of_two_voters_can_stop_an_update_but_not_condemn_it_alone(federation):
    """The lower median of two scores: an attacker's word against an honest one is no slash."""
    cabal = federation(VOTER, cabal=True)
    played = cabal.play(cabal.first(), TERMS, SEED, factors="B")
    assert played.scores[0][0] == -10_000
    assert set(played.verdicts) == {Verdict.NEUTRAL}
    assert (played.adapter.values == cabal.first().values).all()
