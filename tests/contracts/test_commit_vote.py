"""commit_vote: a voter binds itself to its scores."""

import boa
import pytest

from flockllm.rounds import Duty, Phase
from tests.contracts.play import STRANGER, TERMS, Play


@pytest.fixture
def play():
    """A round in EVALUATE."""
    return Play().until(Phase.EVALUATE)


def test_scores_stay_secret(play):
    """The seat shows the commitment and nothing else."""
    who = play.voters[0]
    play.task.commit_vote(1, b"\2" * 32, sender=who)
    seat = play.view().seats[TERMS.proposers]
    assert (seat.duty, seat.commitment, seat.scores) == (Duty.COMMITTED, b"\2" * 32, ())


def test_refusals(play):
    """Not a voter, another round, twice, late."""
    for who in (*play.proposers, STRANGER):
        with boa.reverts("task: not a voter"):
            play.commit_vote(who, [1, 1])
    first, second, _ = play.voters
    with boa.reverts("task: wrong round"):
        play.task.commit_vote(2, b"\2" * 32, sender=first)
    play.commit_vote(first, [1, 1])
    with boa.reverts("task: done already"):
        play.commit_vote(first, [2, 2])
    boa.env.time_travel(seconds=TERMS.evaluate_seconds - 1)
    play.commit_vote(second, [1, 1])
    boa.env.time_travel(seconds=1)
    with boa.reverts("task: late"):
        play.commit_vote(play.voters[2], [1, 1])


def test_the_last_vote_ends_the_phase(play):
    """Then all open theirs."""
    play.vote(play.good)
    state = play.state
    assert (state.phase, state.deadline) == (Phase.REVEAL, state.since + TERMS.reveal_seconds)
    with boa.reverts("task: wrong phase"):
        play.commit_vote(play.voters[0], [1, 1])
