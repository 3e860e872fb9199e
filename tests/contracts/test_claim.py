"""claim: the only way tokens leave a task."""

import boa

from flockllm.rounds import Phase
from tests.contracts.play import KEEPER, STRANGER, Play


def test_claiming_pays_once():
    """All at once, to the caller, and then there is nothing."""
    play = Play().until(Phase.IDLE)
    play.settle(1)
    who = play.seats(1)[0].who
    due = play.claimable(who)
    play.task.claim(sender=who)

    assert play.token.balanceOf(who) == due > 0
    assert play.claimable(who) == 0
    with boa.reverts("task: nothing to claim"):
        play.task.claim(sender=who)
    play.assert_money_adds_up()


def test_nobody_claims_what_is_not_theirs():
    """Strangers have nothing."""
    play = Play().until(Phase.IDLE)
    play.settle(1)
    for who in (STRANGER, KEEPER):
        with boa.reverts("task: nothing to claim"):
            play.task.claim(sender=who)


def test_claiming_works_in_every_phase():
    """Even between opening and draw."""
    play = Play(people=7)
    for who in play.people[:2]:
        play.task.exit(sender=who)
    play.task.open_round()
    play.task.claim(sender=play.people[0])
    assert play.token.balanceOf(play.people[0]) == play.terms.bond
