"""look, seats, participants, round_result: what can be read."""

from flockllm.rounds import Outcome, Phase
from tests.contracts.play import AGGREGATE, INITIAL, STRANGER, Play


def test_strangers_are_nothing():
    """Zeros, not an error."""
    me = Play().view(STRANGER).me
    assert not any(vars(me).values())


def test_a_round_not_drawn_has_no_seats_and_no_result():
    """Round 0 neither."""
    play = Play()
    for number in (0, 1, 9):
        assert play.seats(number) == ()
        result = play.result(number)
        assert (result.outcome, result.seed, result.budget) == (Outcome.OPEN, bytes(32), 0)
    assert play.result(1).adapter_before == INITIAL
    assert play.result(1).adapter_after == bytes(32)


def test_an_open_round_shows_what_its_draw_fixed():
    """How it ends is not known before it does."""
    play = Play().until(Phase.ATTEST)
    for who in play.voters[:1]:
        play.task.attest(1, AGGREGATE, sender=who)
    result = play.result(1)
    assert (result.outcome, result.adapter_after, result.support) == (Outcome.OPEN, bytes(32), 0)
    assert result.budget > 0
    assert not result.evaluated


def test_look_is_seats_and_participants_in_one():
    """The same answers in one call."""
    play = Play().until(Phase.TALLY)
    who = play.people[0]
    view = play.view(who)
    assert view.seats == play.seats(1)
    assert tuple(play.task.participants(who)) == tuple(vars(view.me).values())
