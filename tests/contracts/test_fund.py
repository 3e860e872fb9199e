"""fund: anybody may add to the pool."""

import boa
import pytest

from flockllm.rounds import Phase
from tests.contracts.play import CREATOR, POOL, STRANGER, TERMS, Play


@pytest.mark.parametrize("phase", [None, Phase.TRAIN, Phase.ATTEST])
def test_funds_go_to_the_rounds_still_to_be_drawn(phase):
    """Whatever the phase, the pool grows and the running round's budget stays."""
    play = Play()
    if phase:
        play.until(phase)
    before = play.state
    play.give(STRANGER, 123)
    play.task.fund(123, sender=STRANGER)
    assert play.state.pool == before.pool + 123
    assert play.state.allotted == before.allotted
    play.assert_money_adds_up()


def test_a_budget_is_an_equal_part_of_the_pool():
    """What is allotted leaves the pool; the next part is of what is left."""
    play = Play().until(Phase.TRAIN)
    assert play.result(1).budget == POOL // 4
    assert play.state.pool == POOL - POOL // 4
    assert play.state.allotted == POOL // 4


def test_nothing_is_no_funding():
    """And a task that is over takes none."""
    play = Play(people=0)
    with boa.reverts("task: nothing to add"):
        play.task.fund(0, sender=STRANGER)
    boa.env.time_travel(seconds=TERMS.idle_timeout)
    play.task.cancel(sender=CREATOR)
    play.give(STRANGER, 1)
    with boa.reverts("task: over"):
        play.task.fund(1, sender=STRANGER)
