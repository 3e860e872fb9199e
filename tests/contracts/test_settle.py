"""settle: one seat of a closed round is paid or slashed, once."""

import itertools
from dataclasses import replace

import boa
import pytest

from flockllm.rounds import INVALID, Outcome, Phase
from tests.contracts.play import AGGREGATE, INITIAL, KEEPER, POOL, STRANGER, TERMS, Play

BUDGET = POOL // TERMS.rounds
POT = BUDGET * TERMS.proposer_share // 10_000
UNIT = (BUDGET - POT) // TERMS.voters
FIVE = replace(TERMS, voters=5)
"""A = 3, K = 4."""
UNIT_OF_FIVE = (BUDGET - POT) // 5


def fine(bps: int) -> int:
    """A slash."""
    return TERMS.bond * bps // 10_000


def played(votes, terms=TERMS, attest=AGGREGATE) -> Play:
    """A closed round with the votes of each voter, in seat order."""
    play = Play(terms).until(Phase.EVALUATE)
    mine = dict(zip(play.voters, votes, strict=True))
    play.vote(mine.__getitem__)
    play.reveal(mine.__getitem__)
    play.task.tally(terms.proposers)
    if play.phase == Phase.ATTEST:
        play.attest(attest)
    return play


def dues(play: Play, number: int = 1) -> list[int]:
    """What each seat has gained or lost, in seat order, after settling all."""
    play.settle(number)
    play.assert_money_adds_up()
    return [
        play.claimable(seat.who) + play.stake(seat.who) - play.terms.bond
        for seat in play.seats(number)
    ]


def test_a_round_without_fault():
    """Equal weights share the pot, voters get their units, crumbs return to the pool."""
    play = played([[50, 50]] * 3)
    assert dues(play) == [POT // 2, POT // 2, UNIT, UNIT, UNIT]
    assert play.task.allotted() == 0
    assert play.task.pool() == POOL - 2 * (POT // 2) - 3 * UNIT


def test_pay_follows_weight():
    """60 against 20; nobody gets more than twice an equal part."""
    terms = replace(TERMS, proposers=3)
    play = played([[60, 20, 0]] * 3, terms)
    assert dues(play)[:3] == [2 * POT // 3, POT * 20 // 80, 0]
    play = played([[90, 5, 5]] * 3, terms)
    assert dues(play)[:3] == [2 * POT // 3, POT * 5 // 100, POT * 5 // 100]


def test_a_lonely_accepted_proposer_gets_at_most_twice_its_part():
    """With two proposers that is the pot, with four half of it."""
    assert dues(played([[50, 0]] * 3))[0] == POT
    assert dues(played([[50, 0, 0, 0]] * 3, replace(TERMS, proposers=4)))[0] == POT // 2


def test_accepted_without_weight_is_not_paid():
    """The lower third score is below zero: the pot returns."""
    play = played([[1, 0], [1, 0], [-5, 0]])
    assert dues(play)[:2] == [0, 0]


@pytest.mark.parametrize(
    ("score", "bps"), [(INVALID, "slash_invalid"), (-100, "slash_harmful"), (-99, None), (0, None)]
)
def test_bad_updates_are_slashed(score, bps):
    """Invalid a little, harmful more, useless not at all."""
    play = played([[score, 50]] * 3)
    assert dues(play)[0] == (-fine(getattr(TERMS, bps)) if bps else 0)


def test_voters_are_paid_for_what_the_others_decided():
    """Right on one of two items: half a unit."""
    play = played([[50, 50], [50, 50], [50, 0]])
    # The third sees two others for item 1 and is against: wrong. The first two see one for and one
    # against item 1, which decides nothing.
    assert dues(play)[2:] == [UNIT, UNIT, UNIT // 2]


def test_if_nothing_is_decided_everyone_gets_half():
    """Two silent voters of five leave each of the three with two others that agree: too few."""
    play = Play(FIVE).until(Phase.REVEAL)
    mute = play.voters[3:]
    play.reveal(play.good, without=mute)
    play.task.tally(2)
    play.attest()
    # The two others of each revealing voter are half of the four other drawn voters, not more.
    assert dues(play)[2:] == [UNIT_OF_FIVE // 2] * 3 + [-fine(TERMS.slash_silent)] * 2


@pytest.mark.parametrize(
    ("votes", "contradicts"),
    [
        ([-100, -100, -100, -100, 100], True),
        ([-100, -100, -100, -100, 99], False),
        ([-100, -100, -100, -99, 100], False),
        ([-100, -100, -100, 100, 100], False),
        ([100, 100, 100, 100, -100], True),
        ([100, 100, 100, 100, INVALID], True),
        ([100, 100, 100, 100, -99], False),
        ([100, 100, 100, 99, -100], False),
    ],
)
def test_contradicting_k_others_strongly_is_slashed(votes, contradicts):
    """In both directions K of the drawn must stand against one, all strongly."""
    play = played([[score, 50] for score in votes], FIVE)
    lost = dues(play)[-1]
    assert (lost == -fine(TERMS.slash_contradiction)) == contradicts
    if not contradicts:
        assert lost > 0  # half or more of the unit: the second item is right


def test_contradictions_add_up_to_their_limit():
    """Six items at 500 bps each, at most 2 500."""
    terms = replace(FIVE, proposers=6)
    play = played([[-100] * 6] * 4 + [[100] * 6], terms)
    assert dues(play)[-1] == -fine(2_500)
    play = played([[-100] * 6] * 4 + [[100] * 4 + [0] * 2], terms)
    assert dues(play)[-1] == -fine(2_000)


def test_a_contradiction_that_costs_nothing_still_is_not_paid():
    """Terms without that slash."""
    terms = replace(FIVE, slash_contradiction=0)
    assert dues(played([[-100, 50]] * 4 + [[100, 50]], terms))[-1] == 0


def attested(*digests: bytes | None, terms=FIVE) -> list[int]:
    """What the voters get that attest these, in seat order; None attests nothing."""
    play = Play(terms).until(Phase.ATTEST)
    for who, digest in zip(play.voters, digests, strict=True):
        if digest and play.phase == Phase.ATTEST:
            play.task.attest(1, digest, sender=who)
    play.expire(Phase.ATTEST)
    return dues(play)[terms.proposers :]


def test_a_wrong_attestation_is_slashed_if_k_adopt():
    """Nonsense costs; saying "keep" does not."""
    wrong, u = b"\7" * 32, UNIT_OF_FIVE
    four = [AGGREGATE] * 4
    assert attested(wrong, *four) == [-fine(TERMS.slash_attestation), u, u, u, u]
    assert attested(INITIAL, *four) == [u] * 5
    assert attested(*four, None) == [u] * 5


def test_a_wrong_attestation_is_not_slashed_on_fewer_than_k():
    """Three of five adopt; the others may be the honest ones."""
    wrong, u = b"\7" * 32, UNIT_OF_FIVE
    assert attested(wrong, wrong, *[AGGREGATE] * 3) == [u] * 5


def test_a_wrong_attestation_is_not_slashed_if_the_adapter_is_kept():
    """K voters say keep: who found an improvement did nothing wrong."""
    assert attested(AGGREGATE, *[INITIAL] * 4) == [UNIT_OF_FIVE] * 5


def test_not_attesting_is_unpaid_if_others_waited():
    """At the deadline; not if all went without."""
    u = UNIT_OF_FIVE
    assert attested(AGGREGATE, AGGREGATE, AGGREGATE, None, None) == [u, u, u, 0, 0]
    assert attested(None, None, None, None, None) == [0] * 5


def test_contradiction_and_wrong_attestation_add_up():
    """Both are faults of the same seat; together they stay within the bond."""
    for terms, lost in (
        (FIVE, fine(1_000)),
        (replace(FIVE, slash_attestation=10_000), TERMS.bond),
    ):
        play = Play(terms).until(Phase.EVALUATE)
        *four, fifth = play.voters
        votes = {who: [-100, 50] for who in four} | {fifth: [100, 50]}
        play.vote(votes.__getitem__)
        play.reveal(votes.__getitem__)
        play.task.tally(2)
        play.task.attest(1, b"\7" * 32, sender=fifth)
        play.attest()
        assert dues(play)[-1] == -lost


def test_keepers_earn_a_share_of_a_slash():
    """Whoever settles it, unless it is the slashed one itself."""
    play = played([[INVALID, INVALID]] * 3)
    first, second = (seat.who for seat in play.seats(1)[:2])
    lost = fine(TERMS.slash_invalid)
    pool = play.task.pool()
    play.task.settle(1, first, sender=KEEPER)
    assert play.claimable(KEEPER) == lost * TERMS.keeper_share // 10_000
    assert play.task.pool() == pool + lost - play.claimable(KEEPER)
    pool = play.task.pool()
    play.task.settle(1, second, sender=second)
    assert play.claimable(second) == 0
    assert play.task.pool() == pool + lost
    play.assert_money_adds_up()


def test_keepers_of_faultless_seats_earn_nothing():
    """Paid seats settle themselves."""
    play = played([[50, 50]] * 3)
    play.settle(1, keeper=STRANGER)
    assert play.claimable(STRANGER) == 0


def test_a_slash_takes_the_slashed_off_the_list():
    """Until it tops up; the rest of its stake is its own."""
    play = played([[INVALID, 50]] * 3)
    who = play.seats(1)[0].who
    assert play.view(who).me.index > 0
    play.task.settle(1, who)
    assert play.view(who).me.index == 0
    play.task.exit(sender=who)
    assert play.claimable(who) == TERMS.bond - fine(TERMS.slash_invalid)


def test_more_stake_than_the_bond_keeps_a_place():
    """A slash counts against the stake, the place against the bond."""
    play = Play(people=0)
    for i in range(TERMS.committee):
        play.register(boa.env.generate_address(f"rich {i}"), TERMS.bond + fine(500))
    play.until(Phase.IDLE, lambda _: [INVALID, 50])
    who = play.seats(1)[0].who
    play.task.settle(1, who)
    assert play.stake(who) == TERMS.bond
    assert play.view(who).me.index > 0


def test_a_slash_takes_no_more_than_there_is():
    """Two rounds of full slashes against one bond; the second finds nothing."""
    terms = replace(TERMS, proposers=1, voters=1, slash_harmful=10_000)
    play = Play(terms)
    for _ in range(2):
        play.until(Phase.IDLE, lambda _: [-100])
    for number in (1, 2):
        play.settle(number)
    guilty = {play.seats(number)[0].who for number in (1, 2)}
    assert all(play.stake(who) == 0 for who in guilty)
    play.assert_money_adds_up()


def test_the_order_of_settlements_does_not_matter():
    """I8: every order of a round with pay, slashes and no-shows ends in the same state."""
    play = Play().until(Phase.TRAIN)
    play.train(without=play.proposers[:1])
    play.publish()
    votes = dict(zip(play.voters, ([0, 50], [0, -100], [0, INVALID]), strict=True))
    play.vote(votes.__getitem__)
    play.reveal(votes.__getitem__)
    play.task.tally(2)
    people = [seat.who for seat in play.seats(1)]
    ends = set()
    for order in itertools.islice(itertools.permutations(people), 0, None, 17):
        with boa.env.anchor():
            for who in order:
                play.task.settle(1, who, sender=KEEPER)
            ends.add(
                (
                    play.task.pool(),
                    play.task.allotted(),
                    *[(play.stake(who), play.claimable(who)) for who in [*people, KEEPER]],
                )
            )
    assert len(ends) == 1


def test_refusals():
    """Not a seat, not closed, not twice, not while drawing."""
    play = Play().until(Phase.ATTEST)
    who = play.people[0]
    with boa.reverts("task: round not closed"):
        play.task.settle(1, who)
    play.attest()
    with boa.reverts("task: no such seat"):
        play.task.settle(1, STRANGER)
    for number in (0, 2):
        with boa.reverts("task: no such seat"):
            play.task.settle(number, who)
    play.task.settle(1, who)
    with boa.reverts("task: settled already"):
        play.task.settle(1, who)
    play.task.open_round()
    with boa.reverts("task: drawing"):
        play.task.settle(1, play.people[1])


def test_old_seats_can_be_settled_any_time_later():
    """After further rounds, and after the end."""
    play = Play(replace(TERMS, rounds=2)).until(Phase.IDLE).until(Phase.IDLE)
    assert play.phase == Phase.FINISHED
    assert play.result(1).outcome == Outcome.ADOPTED
    assert play.view(play.people[0]).me.unsettled == 2
    for number in (2, 1):
        play.settle(number)
    assert play.view(play.people[0]).me.unsettled == 0
    assert play.task.allotted() == 0


def test_a_budget_of_nothing_pays_nothing():
    """A pool of 0 is allowed: who takes part does so for the adapter."""
    play = Play(pool=0).until(Phase.IDLE)
    assert dues(play) == [0] * 5
