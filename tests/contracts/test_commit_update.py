"""commit_update: a proposer binds itself to an update."""

import boa
import pytest

from flockllm.rounds import Duty, Phase
from tests.contracts.play import STRANGER, TERMS, Play


@pytest.fixture
def play():
    """A round in TRAIN."""
    return Play().until(Phase.TRAIN)


def test_a_commitment_is_kept(play):
    """Everyone can see that there is one, nobody to what."""
    who = play.proposers[0]
    play.task.commit_update(1, b"\1" * 32, sender=who)
    seat = play.view().seats[0]
    assert (seat.duty, seat.commitment, seat.digest) == (Duty.COMMITTED, b"\1" * 32, bytes(32))


def test_once_per_seat(play):
    """No second thoughts, and no abstention afterwards."""
    who = play.proposers[0]
    play.commit_update(who)
    with boa.reverts("task: done already"):
        play.commit_update(who)
    with boa.reverts("task: done already"):
        play.task.abstain(1, sender=who)


def test_only_proposers(play):
    """Neither voters nor strangers train."""
    for who in (*play.voters, STRANGER):
        with boa.reverts("task: not a proposer"):
            play.commit_update(who)


def test_only_for_the_running_round(play):
    """A call mined late does not count for another round."""
    for number in (0, 2):
        with boa.reverts("task: wrong round"):
            play.task.commit_update(number, b"\1" * 32, sender=play.proposers[0])


def test_the_deadline_is_late(play):
    """One second before it is in time, whether or not anyone has called advance."""
    first, second = play.proposers
    boa.env.time_travel(seconds=TERMS.train_seconds - 1)
    play.commit_update(first)
    boa.env.time_travel(seconds=1)
    with boa.reverts("task: late"):
        play.commit_update(second)


def test_the_last_commitment_ends_the_phase(play):
    """Nobody waits for a deadline in vain."""
    first, second = play.proposers
    play.commit_update(first)
    assert play.phase == Phase.TRAIN
    play.commit_update(second)
    state = play.state
    assert (state.phase, state.deadline) == (Phase.PUBLISH, state.since + TERMS.publish_seconds)


def test_only_in_train(play):
    """Not after it."""
    who = play.proposers[0]
    play.train()
    with boa.reverts("task: wrong phase"):
        play.task.commit_update(1, b"\1" * 32, sender=who)
