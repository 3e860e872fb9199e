"""exit: out, with the stake."""

import boa
import pytest

from flockllm.rounds import Phase
from tests.contracts.play import STRANGER, TERMS, Play


def test_who_has_no_seat_leaves_at_once():
    """The stake is claimable; the last in the list takes the free place."""
    play = Play(people=TERMS.committee + 2)
    who, last = play.people[0], play.people[-1]
    play.task.exit(sender=who)

    me = play.view(who).me
    assert (me.registered, me.stake, me.claimable, me.index) == (False, 0, TERMS.bond, 0)
    assert play.view(last).me.index == 1
    assert play.task.active_member(0) == last
    assert play.state.active == TERMS.committee + 1
    play.assert_money_adds_up()


def test_the_last_of_the_list_leaves_too():
    """Nobody has to move for it."""
    play = Play()
    play.task.exit(sender=play.people[-1])
    assert [play.view(who).me.index for who in play.people] == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.REVEAL, Phase.IDLE])
def test_a_seat_is_settled_before_its_holder_leaves(phase):
    """In the running round and after it, until somebody has settled it."""
    play = Play().until(phase)
    who = play.seats(1)[0].who
    with boa.reverts("task: unsettled seat"):
        play.task.exit(sender=who)
    if phase == Phase.IDLE:
        play.settle(1)
        play.task.exit(sender=who)
        assert not play.view(who).me.registered


def test_not_while_drawing():
    """Nobody runs away from a draw it can foresee."""
    play = Play()
    play.task.open_round()
    with boa.reverts("task: drawing"):
        play.task.exit(sender=play.people[0])


def test_only_participants_exit():
    """And only once."""
    play = Play()
    with boa.reverts("task: not registered"):
        play.task.exit(sender=STRANGER)
    play.task.exit(sender=play.people[0])
    with boa.reverts("task: not registered"):
        play.task.exit(sender=play.people[0])


def test_who_left_may_come_back():
    """As a new participant at the end of the list; what it put in before is still counted."""
    play = Play()
    who = play.people[0]
    play.task.exit(sender=who)
    play.register(who)
    me = play.view(who).me
    assert (me.index, me.deposited, me.claimable) == (5, 2 * TERMS.bond, TERMS.bond)
