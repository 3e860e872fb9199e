"""top_up: more stake, and the way back after a slash."""

import boa

from flockllm.rounds import Phase
from tests.contracts.play import STRANGER, TERMS, Play


def slashed(play: Play) -> str:
    """A proposer that did not show up and has been slashed for it."""
    play.open()
    who = play.proposers[0]
    play.train(without=[who])
    play.publish()
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()
    play.settle(1)
    return who


def test_a_slashed_participant_comes_back_with_the_bond_complete():
    """One unit less leaves it outside."""
    play = Play()
    who = slashed(play)
    missing = TERMS.bond - play.stake(who)
    assert missing > 0
    assert play.view(who).me.index == 0

    play.give(who, missing)
    play.task.top_up(missing - 1, sender=who)
    assert play.view(who).me.index == 0
    play.task.top_up(1, sender=who)
    assert play.view(who).me.index == TERMS.committee
    assert play.stake(who) == TERMS.bond
    assert play.view(who).me.deposited == TERMS.bond + missing
    play.assert_money_adds_up()


def test_an_active_participant_only_adds_stake():
    """Its place in the list stays."""
    play = Play()
    who = play.people[1]
    play.give(who, 7)
    play.task.top_up(7, sender=who)
    assert play.stake(who) == TERMS.bond + 7
    assert play.view(who).me.index == 2
    assert play.state.active == TERMS.committee


def test_money_does_not_end_retirement():
    """Who missed three times says `reactivate`, not only pays."""
    play = Play(people=TERMS.committee)
    for number in range(1, 4):
        play.open()
        play.train(without=play.proposers + play.voters)
        play.settle(number)
        for who in play.people:
            if play.stake(who) < TERMS.bond:
                play.give(who, TERMS.bond)
                play.task.top_up(TERMS.bond - play.stake(who), sender=who)
    retired = [who for who in play.people if play.view(who).me.missed == 3]
    for who in retired:
        assert play.view(who).me.index == 0
        play.give(who, 1)
        play.task.top_up(1, sender=who)
        assert play.view(who).me.index == 0
    assert play.state.active == TERMS.committee - len(retired)


def test_only_participants_top_up():
    """And not with nothing, and not while drawing."""
    play = Play()
    play.give(STRANGER, 1)
    with boa.reverts("task: not registered"):
        play.task.top_up(1, sender=STRANGER)
    with boa.reverts("task: nothing to add"):
        play.task.top_up(0, sender=play.people[0])
    play.give(play.people[0], 1)
    play.task.open_round()
    with boa.reverts("task: drawing"):
        play.task.top_up(1, sender=play.people[0])


def test_stake_may_be_added_in_every_other_phase():
    """TRAIN stands for all that run, FINISHED for the end."""
    play = Play()
    who = play.people[0]
    play.give(who, 2)
    play.open()
    play.task.top_up(1, sender=who)
    assert play.stake(who) == TERMS.bond + 1
    for _ in range(TERMS.rounds - 1):
        play.train()
        play.publish()
        play.vote(play.good)
        play.reveal(play.good)
        play.task.tally(2)
        play.attest()
        play.open()
    assert play.phase == Phase.TRAIN
