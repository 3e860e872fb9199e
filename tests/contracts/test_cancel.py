"""cancel: a way out for a creator that nobody joins."""

import boa
import pytest

from flockllm.rounds import Phase
from tests.contracts.play import CREATOR, POOL, STRANGER, TERMS, Play


def test_a_task_without_participants_is_cancelled():
    """After the timeout, not a second before; stakes can still leave."""
    play = Play(people=1)
    boa.env.time_travel(seconds=TERMS.idle_timeout - 1 - (boa.env.timestamp - play.state.since))
    with boa.reverts("task: too early"):
        play.task.cancel(sender=CREATOR)
    boa.env.time_travel(seconds=1)
    play.task.cancel(sender=CREATOR)
    assert play.phase == Phase.CANCELLED

    play.task.withdraw_rest(sender=CREATOR)
    assert play.claimable(CREATOR) == POOL
    (who,) = play.people
    play.task.exit(sender=who)
    play.task.claim(sender=who)
    assert play.token.balanceOf(who) == TERMS.bond
    play.assert_money_adds_up()


def test_who_may_not():
    """Others never; the creator not while a committee could be drawn."""
    play = Play()
    boa.env.time_travel(seconds=TERMS.idle_timeout)
    with boa.reverts("task: not the creator"):
        play.task.cancel(sender=STRANGER)
    with boa.reverts("task: enough participants"):
        play.task.cancel(sender=CREATOR)


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.TALLY, Phase.ATTEST])
def test_a_running_round_cannot_be_cancelled(phase):
    """Whatever time has passed."""
    play = Play().until(phase)
    boa.env.time_travel(seconds=10 * TERMS.idle_timeout)
    with boa.reverts("task: wrong phase"):
        play.task.cancel(sender=CREATOR)


def test_between_rounds_the_timeout_starts_anew():
    """It counts from when the last round closed."""
    play = Play().until(Phase.IDLE)
    play.settle(1)
    play.task.exit(sender=play.people[0])
    boa.env.time_travel(seconds=TERMS.idle_timeout - 1 - (boa.env.timestamp - play.state.since))
    with boa.reverts("task: too early"):
        play.task.cancel(sender=CREATOR)
    boa.env.time_travel(seconds=1)
    play.task.cancel(sender=CREATOR)
    with boa.reverts("task: wrong phase"):
        play.task.cancel(sender=CREATOR)
    with boa.reverts("task: wrong phase"):
        play.task.open_round()
