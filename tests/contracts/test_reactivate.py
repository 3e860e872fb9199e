"""reactivate: back after three no-shows in a row."""

from dataclasses import replace

import boa

from tests.contracts.play import STRANGER, TERMS, Play

PAIR = replace(TERMS, rounds=60, proposers=1, voters=1, slash_no_show=0)
"""One trains, one judges; missing costs nothing, so that only the count decides."""


def miss(play: Play, who: str, times: int) -> None:
    """Plays rounds in which nobody trains until `who` has missed so often in a row."""
    while play.view(who).me.missed < times:
        play.open()
        if play.proposers == [who]:
            play.train(without=[who])
        else:
            play.train(abstain=play.proposers)


def retired(terms=PAIR, people: int = 2) -> tuple[Play, str]:
    """A task, and one in it who missed three times."""
    play = Play(terms, people)
    miss(play, play.people[0], 3)
    return play, play.people[0]


def test_the_third_no_show_in_a_row_retires():
    """Out of the list, with its stake untouched and still registered."""
    play, who = retired()
    me = play.view(who).me
    assert (me.index, me.registered, me.stake) == (0, True, PAIR.bond)
    with boa.reverts("task: too few participants"):
        play.task.open_round()


def test_reactivating_starts_anew():
    """The count is zero, the place is the last."""
    play, who = retired()
    play.task.reactivate(sender=who)
    assert [type(event).__name__ for event in play.task.get_logs()] == ["Reactivated"]
    assert play.view(who).me.missed == 0
    assert play.view(who).me.index == play.state.active == 2
    with boa.reverts("task: not retired"):
        play.task.reactivate(sender=who)


def test_showing_up_ends_a_row():
    """After two no-shows a commitment, an abstention or a vote counts from zero again."""
    play = Play(PAIR)
    who = play.people[0]
    for act in ("commit", "abstain", "vote"):
        miss(play, who, 2)
        play.open()
        while (play.voters if act == "vote" else play.proposers) != [who]:
            play.train(abstain=play.proposers)
            play.open()
        if act == "abstain":
            play.task.abstain(play.round, sender=who)
        else:
            play.commit_update(play.proposers[0])
            play.publish()
            play.vote(play.good, without=[] if act == "vote" else play.voters)
        assert play.view(who).me.missed == 0
        if act == "vote":
            play.reveal(play.good)
            play.task.tally(1)
            play.attest()


def test_only_the_retired_reactivate():
    """Active, unknown, twice missed: refused."""
    play = Play(PAIR)
    miss(play, play.people[0], 2)
    for who in (*play.people, STRANGER):
        with boa.reverts("task: not retired"):
            play.task.reactivate(sender=who)


def test_no_reactivation_below_the_bond():
    """The fines of no-shows come first."""
    play, who = retired(replace(PAIR, slash_no_show=1))
    play.settle(play.round - 1)
    assert play.stake(who) == PAIR.bond - PAIR.bond // 10_000
    with boa.reverts("task: less than the bond"):
        play.task.reactivate(sender=who)


def test_not_while_drawing():
    """The list is frozen from opening to draw."""
    play, who = retired(people=3)
    play.task.open_round()
    with boa.reverts("task: drawing"):
        play.task.reactivate(sender=who)
