"""attest: the voters agree on the next global adapter."""

from dataclasses import replace

import boa
import pytest

from flockllm.rounds import Outcome, Phase
from tests.contracts.play import AGGREGATE, INITIAL, STRANGER, TERMS, Play

FIVE = replace(TERMS, voters=5)
"""A = 3, K = 4."""
OTHER = b"\7" * 32


def attesting(terms=FIVE) -> Play:
    """A round in ATTEST."""
    return Play(terms).until(Phase.ATTEST)


def say(play: Play, *digests: bytes) -> None:
    """The first voters attest, in seat order."""
    for who, digest in zip(play.voters, digests, strict=False):
        play.task.attest(1, digest, sender=who)


def test_k_equal_digests_close_the_round():
    """The rest need not speak any more."""
    play = attesting()
    say(play, *[AGGREGATE] * 3)
    assert play.phase == Phase.ATTEST
    play.task.attest(1, AGGREGATE, sender=play.voters[3])
    result = play.result(1)
    assert (result.outcome, result.adapter_after) == (Outcome.ADOPTED, AGGREGATE)
    assert (result.support, result.attest_timed_out) == (4, False)
    assert play.state.adapter == AGGREGATE


def test_everyone_has_spoken():
    """Three of five agree: enough to adopt, and nobody is left to wait for."""
    play = attesting()
    say(play, AGGREGATE, OTHER, AGGREGATE, INITIAL, AGGREGATE)
    result = play.result(1)
    assert (result.outcome, result.support, result.attest_timed_out) == (Outcome.ADOPTED, 3, False)
    assert play.state.adapter == AGGREGATE


@pytest.mark.parametrize(
    ("digests", "outcome", "support"),
    [
        ([AGGREGATE] * 3, Outcome.ADOPTED, 3),
        ([AGGREGATE] * 2, Outcome.KEPT, 0),
        ([AGGREGATE, AGGREGATE, OTHER, OTHER], Outcome.KEPT, 0),
        ([INITIAL] * 3, Outcome.KEPT, 3),
        ([], Outcome.KEPT, 0),
    ],
)
def test_the_deadline_decides_with_what_was_said(digests, outcome, support):
    """More than half of the drawn voters for one digest, else the adapter stays."""
    play = attesting()
    say(play, *digests)
    play.expire(Phase.ATTEST)
    result = play.result(1)
    assert (result.outcome, result.support, result.attest_timed_out) == (outcome, support, True)
    adopted = outcome == Outcome.ADOPTED
    assert play.state.adapter == result.adapter_after == (AGGREGATE if adopted else INITIAL)


def test_the_current_adapter_means_keep():
    """K voters say that the aggregate is no improvement."""
    play = attesting()
    say(play, *[INITIAL] * 4)
    result = play.result(1)
    assert (result.outcome, result.support) == (Outcome.KEPT, 4)
    assert result.adapter_before == result.adapter_after == INITIAL


def test_refusals():
    """Nothing, twice, no voter, another round, late."""
    play = attesting()
    first, second, *_ = play.voters
    with boa.reverts("task: no digest"):
        play.task.attest(1, bytes(32), sender=first)
    play.task.attest(1, AGGREGATE, sender=first)
    with boa.reverts("task: done already"):
        play.task.attest(1, OTHER, sender=first)
    for who in (play.proposers[0], STRANGER):
        with boa.reverts("task: not a voter"):
            play.task.attest(1, AGGREGATE, sender=who)
    with boa.reverts("task: wrong round"):
        play.task.attest(2, AGGREGATE, sender=second)
    boa.env.time_travel(seconds=FIVE.attest_seconds)
    with boa.reverts("task: late"):
        play.task.attest(1, AGGREGATE, sender=second)


def test_who_has_not_revealed_does_not_attest():
    """Attesting without having judged would be talk."""
    play = Play(FIVE).until(Phase.REVEAL)
    mute = play.voters[0]
    play.reveal(play.good, without=[mute])
    with boa.reverts("task: wrong phase"):
        play.task.attest(1, AGGREGATE, sender=play.voters[1])
    play.task.tally(2)
    with boa.reverts("task: not revealed"):
        play.task.attest(1, AGGREGATE, sender=mute)


def test_one_voter_is_a_committee():
    """V = 1: A = K = 1."""
    play = attesting(replace(TERMS, voters=1))
    say(play, AGGREGATE)
    assert play.result(1).outcome == Outcome.ADOPTED
