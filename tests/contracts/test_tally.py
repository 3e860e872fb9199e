"""tally: the voters' scores become verdicts and weights."""

from dataclasses import replace

import boa
import pytest

from flockllm import rounds
from flockllm.rounds import INVALID, Outcome, Phase, Verdict
from tests.contracts.play import POOL, STRANGER, TERMS, Play

FIVE = replace(TERMS, proposers=1, voters=5, accept_margin=10, strong_margin=100, score_cap=300)
"""A = 3, K = 4."""


def judged(terms, *scores: int, silent: int = 0):
    """The only proposer after `scores`, one per voter, and `silent` voters that hide theirs."""
    play = Play(terms).until(Phase.EVALUATE)
    mine = dict(zip(play.voters, scores, strict=False))
    mute = play.voters[len(scores) :]
    assert len(mute) == silent
    play.vote(lambda who: [mine.get(who, 0)])
    play.reveal(lambda who: [mine[who]], without=mute)
    play.task.tally(1)
    return play, play.seats(1)[0]


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([INVALID] * 4 + [300], Verdict.INVALID),
        ([INVALID] * 3 + [-100, 300], Verdict.HARMFUL),
        ([INVALID] * 3 + [-99, 300], Verdict.NEUTRAL),
        ([-100] * 4 + [300], Verdict.HARMFUL),
        ([-100] * 3 + [-99, 300], Verdict.NEUTRAL),
        ([-32_767] * 4 + [32_767], Verdict.HARMFUL),
        ([10] * 3 + [-100] * 2, Verdict.ACCEPTED),
        ([10] * 2 + [9] * 3, Verdict.NEUTRAL),
        ([32_767] * 3 + [9] * 2, Verdict.ACCEPTED),
        ([9] * 5, Verdict.NEUTRAL),
        ([0] * 5, Verdict.NEUTRAL),
        ([-1] * 5, Verdict.NEUTRAL),
    ],
)
def test_verdicts_at_their_margins(scores, verdict):
    """One voter more or less, one unit more or less, makes the difference."""
    _, seat = judged(FIVE, *scores)
    assert seat.verdict == verdict
    assert seat.verdict == rounds.judge(FIVE, scores).verdict


@pytest.mark.parametrize(
    ("scores", "silent", "verdict"),
    [
        ([INVALID] * 4, 1, Verdict.INVALID),
        ([INVALID] * 3, 2, Verdict.NEUTRAL),
        ([-100] * 3, 2, Verdict.NEUTRAL),
        ([10] * 3, 2, Verdict.ACCEPTED),
        ([10] * 2 + [9], 2, Verdict.NEUTRAL),
    ],
)
def test_silence_helps_neither_to_condemn_nor_to_accept(scores, silent, verdict):
    """Counts are held against the voters drawn."""
    _, seat = judged(FIVE, *scores, silent=silent)
    assert seat.verdict == verdict


@pytest.mark.parametrize(
    ("scores", "weight"),
    [
        ([10, 11, 12, 13, 14], 11),
        ([-50, -40, 12, 13, 14], 0),
        ([INVALID, 0, 12, 13, 14], 0),
        ([INVALID, 1, 12, 13, 14], 1),
        ([299] * 5, 299),
        ([300] * 5, 300),
        ([301] * 5, 300),
        ([32_767] * 5, 300),
        ([14, 13, 12, 11, 10], 11),
    ],
)
def test_weight_is_the_lower_third_score_within_its_cap(scores, weight):
    """Whatever the order of the voters."""
    _, seat = judged(FIVE, *scores)
    assert (seat.verdict, seat.weight) == (Verdict.ACCEPTED, weight)


def test_weights_of_few_scores():
    """sorted[(n - 1) // 3] of three and of four."""
    assert judged(FIVE, 20, 30, 40, silent=2)[1].weight == 20
    assert judged(FIVE, 20, 30, 40, 50, silent=1)[1].weight == 30


def test_items_are_judged_in_pieces_by_anyone():
    """The phase goes on with the last item only."""
    terms = replace(TERMS, proposers=5)
    play = Play(terms).until(Phase.TALLY)
    play.task.tally(2, sender=STRANGER)
    assert [seat.verdict for seat in play.view().seats[:5]] == [4, 4, 0, 0, 0]
    assert play.phase == Phase.TALLY
    play.task.tally(1)
    assert play.phase == Phase.TALLY
    play.task.tally(2**256 - 1)
    assert [seat.verdict for seat in play.view().seats[:5]] == [4] * 5
    assert play.phase == Phase.ATTEST
    assert play.state.deadline == play.state.since + terms.attest_seconds


def test_what_was_not_published_is_not_judged():
    """Neither abstention nor silence has a verdict, whatever the scores say."""
    terms = replace(TERMS, proposers=3)
    play = Play(terms).until(Phase.TRAIN)
    away, declined, _ = play.proposers
    play.train(without=[away], abstain=[declined])
    play.publish()
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(3)
    assert [seat.verdict for seat in play.view().seats[:3]] == [0, 0, Verdict.ACCEPTED]


def test_if_nothing_is_accepted_the_round_closes():
    """The adapter is kept, the proposers' pot returns."""
    play = Play().until(Phase.TALLY, lambda _: [0, 0])
    play.task.tally(2)
    result = play.result(1)
    assert (result.outcome, result.attest_timed_out, result.evaluated) == (
        Outcome.KEPT,
        False,
        True,
    )
    assert play.round == 2
    assert play.state.phase == Phase.IDLE
    assert play.state.allotted == 3 * (POOL // 4 * 4_000 // 10_000 // 3)


def test_refusals():
    """Only in TALLY, and something must be asked for."""
    play = Play().until(Phase.REVEAL)
    with boa.reverts("task: wrong phase"):
        play.task.tally(1)
    play.reveal(play.good)
    with boa.reverts("task: nothing to do"):
        play.task.tally(0)
    play.task.tally(2)
    with boa.reverts("task: wrong phase"):
        play.task.tally(1)
