"""abstain: a proposer whose training was no improvement says so."""

import boa
import pytest

from flockllm.rounds import Duty, Outcome, Phase
from tests.contracts.play import POOL, STRANGER, TERMS, Play


@pytest.fixture
def play():
    """A round in TRAIN."""
    return Play().until(Phase.TRAIN)


def test_abstaining_costs_and_pays_nothing(play):
    """The other proposer's round goes on without."""
    who = play.proposers[0]
    play.train(abstain=[who])
    assert play.phase == Phase.PUBLISH
    assert play.view().seats[0].duty == Duty.ABSTAINED
    play.publish()
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()
    play.settle(1)
    assert (play.stake(who), play.claimable(who)) == (TERMS.bond, 0)


def test_if_all_abstain_the_round_is_void(play):
    """Nobody is fined, the budget returns."""
    people = play.proposers
    play.train(abstain=people)
    assert play.result(1).outcome == Outcome.VOID
    assert play.state.pool == POOL
    play.settle(1)
    assert all(play.stake(who) == TERMS.bond for who in play.people)


def test_refusals(play):
    """As for a commitment: proposers, once, in time, in this round."""
    who, other = play.proposers
    with boa.reverts("task: not a proposer"):
        play.task.abstain(1, sender=play.voters[0])
    with boa.reverts("task: not a proposer"):
        play.task.abstain(1, sender=STRANGER)
    with boa.reverts("task: wrong round"):
        play.task.abstain(2, sender=who)
    play.task.abstain(1, sender=who)
    with boa.reverts("task: done already"):
        play.task.abstain(1, sender=who)
    with boa.reverts("task: done already"):
        play.commit_update(who)
    boa.env.time_travel(seconds=TERMS.train_seconds)
    with boa.reverts("task: late"):
        play.task.abstain(1, sender=other)
    play.task.advance()
    with boa.reverts("task: wrong round"):
        play.task.abstain(1, sender=other)
