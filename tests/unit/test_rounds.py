"""The rules of a round, each by examples at its edges. The contract is compared elsewhere."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flockllm.errors import InvalidSpec
from flockllm.rounds import (
    INVALID,
    Advance,
    Attest,
    Draw,
    Duty,
    OpenRound,
    Outcome,
    Participant,
    Phase,
    Propose,
    Publish,
    Reactivate,
    Reveal,
    RoundResult,
    Seat,
    Settle,
    State,
    Stop,
    Tally,
    Terms,
    TopUp,
    Verdict,
    View,
    Vote,
    Wait,
    budget_of,
    commitment,
    draw_seats,
    judge,
    next_action,
    pack_scores,
    score,
    settlement,
    unpack_scores,
)

TERMS = Terms(proposers=2, voters=5)
NAMES = [f"0x{i:040x}" for i in range(1, 20)]
ME, OTHER = NAMES[0], NAMES[1]


def seat(who=ME, *, voter=False, **values):
    """A seat that has done nothing yet, but for `values`."""
    defaults = {
        "duty": Duty.DRAWN,
        "commitment": b"",
        "digest": bytes(32),
        "size": 0,
        "scores": (),
        "verdict": Verdict.NONE,
        "weight": 0,
        "settled": False,
    }
    return Seat(who=who, voter=voter, **(defaults | values))


def committee(columns, verdicts=(Verdict.ACCEPTED,) * 2, **voter):
    """A committee whose proposers published and whose voters revealed these scores."""
    proposers = [
        seat(NAMES[i], duty=Duty.DONE, verdict=v, weight=100) for i, v in enumerate(verdicts)
    ]
    return [
        *proposers,
        *(
            seat(NAMES[5 + i], voter=True, duty=Duty.DONE, scores=s, **voter)
            for i, s in enumerate(columns)
        ),
    ]


RESULT = RoundResult(
    Outcome.ADOPTED, b"", 0, 1000, b"\1" * 32, b"\2" * 32, support=4, attest_timed_out=False,
    evaluated=True,
)  # fmt: skip


# Terms


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("proposers", 17),
        ("voters", 64),
        ("bond", 0),
        ("strong_margin", 1),
        ("score_cap", 99),
        ("keeper_share", 10_001),
        ("train_seconds", 0),
        ("bond", True),
    ],
)
def test_terms_refuse_what_the_contract_would(name, value):
    """A term outside its limits is named, before anything is sent."""
    with pytest.raises(InvalidSpec, match=f"terms.{name}"):
        Terms(**{name: value})


def test_quorum_is_two_thirds_rounded_up():
    """K and A for every size of committee, in exact arithmetic."""
    for voters in range(1, 64):
        terms = Terms(voters=voters)
        assert 3 * terms.quorum >= 2 * voters > 3 * (terms.quorum - 1)
        assert 2 * terms.majority > voters >= 2 * (terms.majority - 1)


# The draw


@given(st.binary(min_size=32, max_size=32), st.integers(2, 500), st.data())
def test_a_draw_gives_distinct_members(seed, n, data):
    """Nobody sits twice, everybody is a member."""
    seats = data.draw(st.integers(1, min(n, 79)))
    drawn = draw_seats(seed, n, seats)
    assert len(set(drawn)) == seats
    assert all(0 <= i < n for i in drawn)


def test_a_draw_is_fair():
    """Over many seeds everyone gets each seat about equally often (chi-squared, 5 sigma)."""
    rounds, n = 4000, 8
    counts = Counter((i, who) for r in range(rounds) for i, who in
                     enumerate(draw_seats(r.to_bytes(32), n, 3)))  # fmt: skip
    expected = rounds / n
    chi = sum((counts[i, who] - expected) ** 2 / expected for i in range(3) for who in range(n))
    freedom = 3 * (n - 1)
    assert chi < freedom + 5 * (2 * freedom) ** 0.5


# Commitments and scores


@given(st.lists(st.integers(-32_768, 32_767), max_size=16))
def test_scores_survive_packing(scores):
    """Sixteen signed numbers in one word."""
    assert unpack_scores(pack_scores(scores), len(scores)) == tuple(scores)


def test_a_commitment_is_bound_to_everything():
    """Another chain, task, round, sender, content or salt is another commitment."""
    base = (1, OTHER, 1, ME, bytes(32), bytes(32))
    changed = (2, NAMES[3], 2, OTHER, b"\1" * 32, b"\2" * 32)
    variants = {commitment(*base)}
    for i, value in enumerate(changed):
        variants.add(commitment(*base[:i], value, *base[i + 1 :]))
    assert len(variants) == 7


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (2.0, 1.0, 5_000),
        (2.0, 2.0, 0),
        (1.0, 2.0, -10_000),
        (1.0, 100.0, -32_767),
        (1.0, float("nan"), -32_767),
        (1.0, float("inf"), -32_767),
        (0.0, 0.0, 0),
        (1.0, 1.0 - 1.6e-4, 2),
    ],
)
def test_a_score_is_the_relative_change_in_bps(before, after, expected):
    """Better is positive; what is no number is the worst; INVALID cannot come out."""
    assert score(before, after) == expected


# Tally


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([INVALID] * 4 + [500], Verdict.INVALID),  # K = 4 of 5
        ([INVALID] * 3 + [500] * 2, Verdict.NEUTRAL),
        ([INVALID] * 2 + [-100] * 2 + [500], Verdict.HARMFUL),
        ([-100] * 4, Verdict.HARMFUL),
        ([-100] * 3 + [-99] * 2, Verdict.NEUTRAL),
        ([1] * 3 + [-5_000] * 2, Verdict.ACCEPTED),  # A = 3 of 5
        ([1] * 3, Verdict.ACCEPTED),
        ([1] * 2, Verdict.NEUTRAL),  # silence never helps to accept
        ([0] * 5, Verdict.NEUTRAL),
        ([], Verdict.NEUTRAL),
    ],
)
def test_verdicts_at_their_edges(scores, verdict):
    """K voters condemn, A voters accept, counted against those drawn."""
    assert judge(TERMS, scores).verdict == verdict


def test_the_weight_is_the_lower_third_between_zero_and_the_cap():
    """A minority of praise does not raise the pay."""
    assert judge(TERMS, [10, 20, 30, 40, 9_000]).weight == 20
    assert judge(TERMS, [5_000] * 5).weight == TERMS.score_cap
    assert judge(TERMS, [-50, -50, 1, 1, 1]).weight == 0


# Money


def test_a_budget_is_never_overspent():
    """Pay, voters' shares and what returns are exactly the budget."""
    seats = committee([(50, 50)] * 5)
    budget = budget_of(TERMS, 1_001, seats)
    assert sum(budget.proposers) + 5 * budget.voter + budget.returned == 1_001
    assert budget.proposers == (300, 300)


def test_one_good_proposer_gets_at_most_twice_its_share():
    """Being alone is not worth more than being twice as good."""
    seats = committee([(50, 50)] * 5)
    seats[1] = replace(seats[1], verdict=Verdict.NEUTRAL, weight=0)
    seats = [seats[0], seats[1], *seats[2:]]
    terms = replace(TERMS, proposers=4, voters=5)
    assert budget_of(terms, 1_000, [seats[0], seats[1], seats[1], seats[1]]).proposers[0] == 300


@pytest.mark.parametrize(
    ("duty", "verdict", "bps"),
    [
        (Duty.DRAWN, Verdict.NONE, 100),
        (Duty.COMMITTED, Verdict.NONE, 500),
        (Duty.ABSTAINED, Verdict.NONE, 0),
        (Duty.DONE, Verdict.INVALID, 500),
        (Duty.DONE, Verdict.HARMFUL, 2_000),
        (Duty.DONE, Verdict.NEUTRAL, 0),
    ],
)
def test_what_a_proposer_loses(duty, verdict, bps):
    """Each way to fail has its price, abstaining has none."""
    seats = committee([(50, 50)] * 5)
    seats[0] = replace(seats[0], duty=duty, verdict=verdict)
    assert settlement(TERMS, RESULT, seats, 0).slashed == TERMS.bond * bps // 10_000


def test_a_voter_is_judged_by_the_others_only():
    """Being alone against four costs the item's pay, not the stake."""
    seats = committee([(50, 50)] * 4 + [(-50, 50)])
    paid = [settlement(TERMS, RESULT, seats, i).paid for i in range(2, 7)]
    assert paid == [80, 80, 80, 80, 40]


def test_contradiction_needs_a_quorum_of_others():
    """Fewer than K dishonest voters cannot have an honest one slashed (invariant I10)."""
    three = committee([(500, 50)] * 3 + [(-500, 50)] * 2)
    assert settlement(TERMS, RESULT, three, 6).slashed == 0
    four = committee([(500, 50)] * 4 + [(-500, 50)])
    assert settlement(TERMS, RESULT, four, 6).slashed == TERMS.bond * 500 // 10_000


def test_a_wrong_attestation_costs_only_against_a_quorum():
    """Naming the current adapter is an opinion; naming a third one is a fault."""
    seats = committee([(50, 50)] * 5, digest=RESULT.adapter_after)
    for digest, support, bps in [
        (b"\3" * 32, 4, 500),
        (b"\3" * 32, 3, 0),
        (RESULT.adapter_before, 4, 0),
    ]:
        wrong = [*seats[:6], replace(seats[6], digest=digest)]
        result = replace(RESULT, support=support)
        assert settlement(TERMS, result, wrong, 6).slashed == TERMS.bond * bps // 10_000


def test_not_attesting_is_unpaid_if_it_held_the_round_up():
    """A round that ended at its deadline does not pay those it waited for."""
    seats = committee([(50, 50)] * 5)
    assert settlement(TERMS, RESULT, seats, 6).paid == 80
    assert settlement(TERMS, replace(RESULT, attest_timed_out=True), seats, 6).paid == 0


# What to do next

STATE = State(1, Phase.IDLE, 1_000, 0, 0, b"\1" * 32, 0, 0, 7)
MEMBER = Participant(True, TERMS.bond, TERMS.bond, 0, 2, 0, 0, 0)


def decide(phase, seats=(), *, now=1_000, me=MEMBER, past=None, deadline=2_000, **options):
    """What `ME` does in a phase."""
    state = replace(STATE, phase=phase, deadline=deadline)
    view = View(state, tuple(seats), me)
    return next_action(TERMS, view, ME, now, block=10, past=past or {}, **options)


@pytest.mark.parametrize(
    ("phase", "mine", "kind"),
    [
        (Phase.TRAIN, seat(), Propose),
        (Phase.TRAIN, seat(duty=Duty.COMMITTED), Wait),
        (Phase.TRAIN, seat(duty=Duty.ABSTAINED), Wait),
        (Phase.TRAIN, seat(voter=True), Wait),
        (Phase.PUBLISH, seat(duty=Duty.COMMITTED), Publish),
        (Phase.PUBLISH, seat(duty=Duty.DONE), Wait),
        (Phase.EVALUATE, seat(voter=True), Vote),
        (Phase.EVALUATE, seat(voter=True, duty=Duty.COMMITTED), Wait),
        (Phase.EVALUATE, seat(), Wait),
        (Phase.REVEAL, seat(voter=True, duty=Duty.COMMITTED), Reveal),
        (Phase.REVEAL, seat(voter=True), Wait),
        (Phase.ATTEST, seat(voter=True, duty=Duty.DONE), Attest),
        (Phase.ATTEST, seat(voter=True, duty=Duty.DONE, digest=b"\1" * 32), Wait),
        (Phase.ATTEST, seat(voter=True, duty=Duty.COMMITTED), Wait),
        (Phase.TALLY, seat(), Tally),
        (Phase.FINISHED, seat(), Stop),
        (Phase.CANCELLED, seat(), Stop),
    ],
)
def test_each_seat_does_its_duty_once(phase, mine, kind):
    """What has been done is seen on chain, so that a restart does not repeat it."""
    assert isinstance(decide(phase, [mine], now=1_100), kind)


def test_at_the_deadline_the_phase_is_pushed_on_instead():
    """A call at the deadline would be late."""
    assert isinstance(decide(Phase.TRAIN, [seat()], now=1_999), Propose)
    assert isinstance(decide(Phase.TRAIN, [seat()], now=2_000 + 60), Advance)


def test_calls_for_everybody_are_spread():
    """At any moment one more keeper has its turn, so that not everyone pays for the same call."""
    seats = [seat(name) for name in NAMES[:7]]
    turns = [decide(Phase.TALLY, seats, now=1_000 + 3 * i) for i in range(8)]
    kinds = [isinstance(turn, Tally) for turn in turns]
    assert kinds == sorted(kinds)
    assert kinds[-1]


def test_a_round_is_opened_when_enough_are_there():
    """With fewer there is nothing to do but wait."""
    assert decide(Phase.IDLE, now=1_100) == OpenRound()
    few = View(replace(STATE, active=6), (), MEMBER)
    assert next_action(TERMS, few, ME, 1_100, block=10, past={}) == Wait()


def test_the_draw_waits_for_its_block():
    """The hash of the draw block is known one block later, and forgotten after 256."""
    for block, expected in [(10, Wait), (11, Draw), (266, Draw), (267, Advance)]:
        view = View(replace(STATE, phase=Phase.DRAW, draw_block=10), (), MEMBER)
        action = next_action(TERMS, view, ME, 1_100, block=block, past={})
        assert isinstance(action, expected), block


def test_own_seats_are_settled_first_and_never_during_a_draw():
    """Settling may change who can be drawn."""
    past = {1: [seat(OTHER), seat(ME)]}
    assert decide(Phase.IDLE, past=past) == Settle(1, ME)
    assert not isinstance(decide(Phase.DRAW, past=past), Settle)
    done = {1: [seat(OTHER), seat(ME, settled=True)]}
    assert decide(Phase.IDLE, past=done, now=1_100) == Settle(1, OTHER)


def test_nobody_leaves_before_the_no_shows_of_the_last_round_have_paid():
    """Who has gone does not settle its own seat: whoever stays does, for the keeper's share."""
    gone = {1: [seat(OTHER), seat(ME, settled=True)]}
    assert isinstance(decide(Phase.FINISHED, past=gone), Wait)
    assert decide(Phase.FINISHED, past=gone, now=1_100) == Settle(1, OTHER)
    assert decide(Phase.FINISHED, past={1: [seat(settled=True)]}, now=1_100) == Stop()


def test_topping_up_stays_below_its_limit():
    """Money is added only as far as one has allowed."""
    poor = replace(MEMBER, stake=TERMS.bond - 30, index=0)
    assert decide(Phase.IDLE, me=poor, top_up_limit=30) == TopUp(30)
    assert not isinstance(decide(Phase.IDLE, me=poor, top_up_limit=29), TopUp)
    again = replace(poor, deposited=TERMS.bond + 10)
    assert not isinstance(decide(Phase.IDLE, me=again, top_up_limit=39), TopUp)
    assert decide(Phase.IDLE, me=again, top_up_limit=40) == TopUp(30)


def test_who_comes_back_after_no_shows_says_so():
    """A node that runs again reactivates itself, once its bond is complete."""
    retired = replace(MEMBER, index=0, missed=3)
    assert decide(Phase.IDLE, me=retired) == Reactivate()
    poor = replace(retired, stake=TERMS.bond - 1)
    assert not isinstance(decide(Phase.IDLE, me=poor), Reactivate)
