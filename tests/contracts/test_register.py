"""register: how one becomes a participant."""

import boa

from flockllm.rounds import Phase
from tests.contracts.play import CREATOR, STRANGER, TERMS, Play


def test_registering_puts_the_amount_at_stake():
    """The tokens move, the participant is at the end of the active list."""
    play = Play()
    play.register(STRANGER, TERMS.bond + 5)

    me = play.view(STRANGER).me
    assert (me.registered, me.stake, me.deposited) == (True, TERMS.bond + 5, TERMS.bond + 5)
    assert me.index == play.state.active == TERMS.committee + 1
    assert play.token.balanceOf(STRANGER) == 0
    play.assert_money_adds_up()


def test_less_than_the_bond_is_refused():
    """One unit makes the difference."""
    play = Play()
    with boa.reverts("task: less than the bond"):
        play.register(STRANGER, TERMS.bond - 1)


def test_nobody_registers_twice():
    """More stake goes in by top_up."""
    play = Play()
    with boa.reverts("task: registered already"):
        play.register(play.people[0])


def test_the_list_is_frozen_from_opening_to_draw():
    """Who knows the draw block's hash cannot choose a place in the list any more."""
    play = Play()
    play.task.open_round()
    with boa.reverts("task: drawing"):
        play.register(STRANGER)

    boa.env.time_travel(blocks=2, block_delta=1)
    play.task.draw()
    play.register(STRANGER)
    assert play.view(STRANGER).me.index == TERMS.committee + 1


def test_a_task_that_is_over_takes_nobody():
    """Finished or cancelled."""
    finished = Play()
    for _ in range(TERMS.rounds):
        finished.until(Phase.IDLE)
    with boa.reverts("task: over"):
        finished.register(STRANGER)

    cancelled = Play(people=0)
    boa.env.time_travel(seconds=TERMS.idle_timeout)
    cancelled.task.cancel(sender=CREATOR)
    with boa.reverts("task: over"):
        cancelled.register(STRANGER)


def test_registering_needs_an_approval():
    """Without it the token refuses, and nothing has happened."""
    play = Play()
    with boa.reverts():
        play.task.register(TERMS.bond, sender=STRANGER)
    assert not play.view(STRANGER).me.registered


def test_amounts_have_a_limit_that_keeps_arithmetic_safe():
    """2**128 tokens are refused, one less is taken."""
    play = Play()
    with boa.reverts("task: amount too large"):
        play.register(STRANGER, 2**128)
    play.register(STRANGER, 2**128 - 1)
    assert play.stake(STRANGER) == 2**128 - 1
