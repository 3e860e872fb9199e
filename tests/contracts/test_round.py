"""Whole rounds, from opening to the money in people's pockets."""

from flockllm.rounds import Outcome, Phase, Verdict
from tests.contracts.play import AGGREGATE, INITIAL, TERMS, Play


def test_an_honest_round_pays_everyone_and_adopts_the_aggregate():
    """Nobody is slashed, the budget is spent, and all of it can be taken out."""
    play = Play().until(Phase.IDLE)

    result = play.result(1)
    assert result.outcome == Outcome.ADOPTED
    assert (result.adapter_before, result.adapter_after) == (INITIAL, AGGREGATE)
    assert play.state.adapter == AGGREGATE
    assert play.round == 2

    play.settle(1)
    play.assert_money_adds_up()
    for seat in play.seats(1):
        paid = play.claimable(seat.who)
        assert paid > 0
        assert play.stake(seat.who) == TERMS.bond
        play.task.exit(sender=seat.who)
        play.task.claim(sender=seat.who)
        assert play.token.balanceOf(seat.who) == TERMS.bond + paid


def test_a_round_without_updates_is_void_and_returns_its_budget():
    """Nobody trains: the budget is back in the pool, the adapter stays, the no-shows pay."""
    play = Play()
    before = play.state.pool
    play.open()
    proposers = play.proposers
    play.train(without=proposers)

    assert play.result(1).outcome == Outcome.VOID
    assert play.state.pool == before
    assert play.state.adapter == INITIAL
    assert all(seat.verdict == Verdict.NONE for seat in play.seats(1))

    play.settle(1)
    play.assert_money_adds_up()
    fine = TERMS.bond * TERMS.slash_no_show // 10_000
    assert [play.stake(who) for who in proposers] == [TERMS.bond - fine] * 2


def test_the_last_round_finishes_the_task():
    """After it nothing opens, and the creator may take what is left."""
    play = Play()
    for number in range(1, TERMS.rounds + 1):
        play.until(Phase.IDLE)
        play.settle(number)

    assert play.phase == Phase.FINISHED
    play.assert_money_adds_up()
