"""The rules of one round as plain data and pure functions.

No clock, no chain, no store: time is an argument, what to do is the return value. The
contract enforces the same rules; `tests/properties/test_round_model.py` runs the two side by
side. `docs/protocol.md` gives the reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

from eth_hash.auto import keccak

from flockllm.errors import InvalidSpec

BPS = 10_000
"""Basis points of a whole."""

INVALID = -32_768
"""The score of an update that is none: missing, too large, malformed, or all zero."""

Address = str
"""Checksummed hex, as the chain's Python face gives it."""


class Phase(IntEnum):
    """Where a task stands; the contract moves only forward through a round."""

    IDLE = 0
    DRAW = 1
    TRAIN = 2
    PUBLISH = 3
    EVALUATE = 4
    REVEAL = 5
    TALLY = 6
    ATTEST = 7
    FINISHED = 8
    CANCELLED = 9


class Duty(IntEnum):
    """How far a seat has done its work."""

    DRAWN = 0
    COMMITTED = 1
    DONE = 2
    """A proposer has published, a voter has revealed."""
    ABSTAINED = 3


class Verdict(IntEnum):
    """What the voters think of one update."""

    NONE = 0
    INVALID = 1
    HARMFUL = 2
    NEUTRAL = 3
    ACCEPTED = 4


class Outcome(IntEnum):
    """How a round ended."""

    OPEN = 0
    VOID = 1
    KEPT = 2
    ADOPTED = 3


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a task fixes on chain when it is created. Amounts in the token's smallest unit."""

    rounds: int = 10
    """How often a committee trains and votes."""
    proposers: int = 4
    """P: seats that train, per round."""
    voters: int = 5
    """V: seats that score, per round."""
    bond: int = 10 * 10**18
    """Stake a participant must hold to be drawn; slashes are parts of it."""
    proposer_share: int = 6_000
    """Part of a round's budget that goes to proposers, in bps."""
    accept_margin: int = 1
    """τ: the score from which a voter is for an update."""
    strong_margin: int = 100
    """M: scores of ≤ -M condemn."""
    score_cap: int = 1_000
    """Scores above this earn no more."""
    slash_no_show: int = 100
    """For a seat that did nothing, in bps of the bond, as all slashes."""
    slash_silent: int = 500
    """For an update committed but not published, a vote committed but not revealed."""
    slash_invalid: int = 500
    """For an update that is none."""
    slash_harmful: int = 2_000
    """For an update that makes the model clearly worse."""
    slash_contradiction: int = 500
    """For each score strongly against what K others found."""
    slash_contradictions: int = 2_500
    """At most, for all contradictions of a seat together."""
    slash_attestation: int = 500
    """For attesting an aggregate that K others did not compute."""
    keeper_share: int = 1_000
    """Part of a slash that goes to whoever settles the seat, in bps."""
    train_seconds: int = 7_200
    publish_seconds: int = 900
    evaluate_seconds: int = 3_600
    reveal_seconds: int = 900
    attest_seconds: int = 1_800
    idle_timeout: int = 604_800
    """Seconds without enough participants after which the creator may cancel."""

    def __post_init__(self) -> None:
        for name, (low, high) in self._limits().items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise InvalidSpec(f"terms.{name} must be from {low} to {high}, got {value!r}")

    def _limits(self) -> Mapping[str, tuple[int, int]]:
        limits = {f.name: (0, BPS) for f in fields(self)}
        limits |= {
            "rounds": (1, 10_000),
            "proposers": (1, 16),
            "voters": (1, 63),
            "bond": (1, 2**128 - 1),
            "accept_margin": (0, 1_000),
            "strong_margin": (self.accept_margin + 1, BPS),
            "score_cap": (self.strong_margin, BPS),
            "idle_timeout": (1, 2**32 - 1),
        }
        for phase in ("train", "publish", "evaluate", "reveal", "attest"):
            limits[f"{phase}_seconds"] = (1, 2**32 - 1)
        return limits

    @property
    def majority(self) -> int:
        """A: more than half of the voters drawn."""
        return self.voters // 2 + 1

    @property
    def quorum(self) -> int:
        """K: two thirds of the voters drawn, rounded up; what it takes to condemn."""
        return (2 * self.voters + 2) // 3

    @property
    def committee(self) -> int:
        """Seats in a round, P + V."""
        return self.proposers + self.voters


@dataclass(frozen=True)
class State:
    """The task as it stands."""

    round: int
    """The running round, or the next one while idle; from 1."""
    phase: Phase
    since: int
    """Unix time at which the phase was entered."""
    deadline: int
    """Unix time at which the phase may be pushed on; 0 where it waits for something else."""
    draw_block: int
    """The block whose hash seeds the draw."""
    adapter: bytes
    """Digest of the current global adapter, 32 bytes."""
    pool: int
    allotted: int
    active: int
    """N: participants that can be drawn."""


@dataclass(frozen=True)
class Seat:
    """One place in a round's committee. Proposers come first, in the order of their items."""

    who: Address
    voter: bool
    duty: Duty
    commitment: bytes
    digest: bytes
    """Proposer: the published update. Voter: the attested adapter. Zero bytes if none."""
    size: int
    """Bytes of the published update."""
    scores: tuple[int, ...]
    """A voter's revealed scores, one per proposer seat; empty before."""
    verdict: Verdict
    weight: int
    settled: bool


@dataclass(frozen=True)
class Participant:
    """What the contract knows of one address."""

    registered: bool
    stake: int
    deposited: int
    """All that was ever put in as stake."""
    claimable: int
    index: int
    """Place among the active participants, from 1; 0 if not active."""
    missed: int
    """No-shows in a row."""
    unsettled: int
    last_round: int


@dataclass(frozen=True)
class View:
    """Everything a node needs to decide, as one `eth_call` returns it."""

    state: State
    seats: tuple[Seat, ...]
    me: Participant


@dataclass(frozen=True)
class RoundResult:
    """What is left of a closed round."""

    outcome: Outcome
    seed: bytes
    draw_block: int
    budget: int
    adapter_before: bytes
    adapter_after: bytes
    support: int
    """Attestations of the winning digest."""
    attest_timed_out: bool
    evaluated: bool
    """Whether the round came as far as EVALUATE: before it, voters had no duty."""


# The draw


def draw_seats(seed: bytes, n: int, seats: int) -> list[int]:
    """Indices of the drawn among `n` active participants: partial Fisher–Yates, O(seats).

    Swaps are kept in a dictionary, so the cost does not depend on `n`.
    """
    moved: dict[int, int] = {}
    drawn = []
    for i in range(seats):
        j = i + int.from_bytes(keccak(seed + word(i))) % (n - i)
        drawn.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return drawn


def draw_seed(chain_id: int, task: Address, round_: int, block_hash: bytes, entropy: int) -> bytes:
    """The seed of a round's draw: nobody knows it before the draw block is mined."""
    return keccak(word(chain_id) + word(int(task, 16)) + word(round_) + block_hash + word(entropy))


def word(value: int) -> bytes:
    """An unsigned integer as the EVM's 32 bytes."""
    return value.to_bytes(32)


# Commitments


def commitment(
    chain_id: int, task: Address, round_: int, who: Address, content: bytes, salt: bytes
) -> bytes:
    """Binds `content` (32 bytes: an update's digest, packed scores) to one seat and no other."""
    return keccak(
        word(chain_id) + word(int(task, 16)) + word(round_) + word(int(who, 16)) + content + salt
    )


def pack_scores(scores: Sequence[int]) -> int:
    """Up to 16 scores as int16 in one word; item i at bits 16 i to 16 i + 15."""
    return sum((score & 0xFFFF) << 16 * i for i, score in enumerate(scores))


def unpack_scores(packed: int, items: int) -> tuple[int, ...]:
    """The inverse of `pack_scores` for the first `items` scores."""
    lanes = (packed >> 16 * i & 0xFFFF for i in range(items))
    return tuple(lane - 0x10000 if lane & 0x8000 else lane for lane in lanes)


def score(loss_before: float, loss_after: float) -> int:
    """The relative change of a loss in bps, positive is better, within ±32 767.

    A loss that is not a finite number is the worst there is.
    """
    change = BPS * (loss_before - loss_after) / loss_before if loss_before else 0.0
    if not abs(change) <= 32_767:  # NaN compares as false
        return 32_767 if change > 0 else -32_767
    return round(change)


# Tally


@dataclass(frozen=True)
class Judgement:
    """The voters' verdict on one update and, if accepted, its weight in the pay."""

    verdict: Verdict
    weight: int = 0


def judge(terms: Terms, scores: Sequence[int]) -> Judgement:
    """Judges one published update by all revealed scores.

    Counts are held against the voters drawn, so silence never helps to condemn or accept.
    """
    if sum(s == INVALID for s in scores) >= terms.quorum:
        return Judgement(Verdict.INVALID)
    if sum(s <= -terms.strong_margin for s in scores) >= terms.quorum:
        return Judgement(Verdict.HARMFUL)
    if sum(s >= terms.accept_margin for s in scores) >= terms.majority:
        lower_third = sorted(scores)[(len(scores) - 1) // 3]
        return Judgement(Verdict.ACCEPTED, max(0, min(lower_third, terms.score_cap)))
    return Judgement(Verdict.NEUTRAL)


def revealed(seats: Sequence[Seat]) -> list[Seat]:
    """The voters whose scores count."""
    return [seat for seat in seats if seat.voter and seat.duty == Duty.DONE]


def published(seats: Sequence[Seat]) -> dict[int, Seat]:
    """The proposers that published, by item."""
    return {i: seat for i, seat in enumerate(seats) if not seat.voter and seat.duty == Duty.DONE}


def attested_winner(terms: Terms, seats: Sequence[Seat]) -> bytes | None:
    """The digest that more than half of the drawn voters attest, if there is one."""
    digests = [seat.digest for seat in revealed(seats) if any(seat.digest)]
    for digest in set(digests):
        if digests.count(digest) >= terms.majority:
            return digest
    return None


# Money


@dataclass(frozen=True)
class Settlement:
    """What one seat gets and loses, in the token's smallest unit."""

    paid: int = 0
    slashed: int = 0
    """Before the limit that the remaining stake sets."""


@dataclass(frozen=True)
class Budget:
    """How a round's money is split. Shares that no seat can get return to the pool."""

    proposers: tuple[int, ...]
    """Pay of each proposer seat."""
    voter: int
    """The most that one voter can get."""
    returned: int


def budget_of(terms: Terms, amount: int, seats: Sequence[Seat]) -> Budget:
    """Splits `amount`, the budget of a round that was not void."""
    pot = amount * terms.proposer_share // BPS
    unit = (amount - pot) // terms.voters
    weights = [seat.weight for seat in seats[: terms.proposers]]
    total = sum(weights)
    most = 2 * pot // terms.proposers
    pays = tuple(min(pot * w // total, most) if total else 0 for w in weights)
    return Budget(pays, unit, amount - sum(pays) - terms.voters * unit)


def settlement(terms: Terms, result: RoundResult, seats: Sequence[Seat], at: int) -> Settlement:
    """What the seat at index `at` of a closed round gets and loses."""
    seat = seats[at]
    if seat.voter:
        return _settle_voter(terms, result, seats, seat)
    match seat.duty, seat.verdict:
        case Duty.DRAWN, _:
            return _slash(terms, terms.slash_no_show)
        case Duty.COMMITTED, _:
            return _slash(terms, terms.slash_silent)
        case Duty.DONE, Verdict.INVALID if result.outcome != Outcome.VOID:
            return _slash(terms, terms.slash_invalid)
        case Duty.DONE, Verdict.HARMFUL if result.outcome != Outcome.VOID:
            return _slash(terms, terms.slash_harmful)
        case Duty.DONE, Verdict.ACCEPTED if result.outcome != Outcome.VOID:
            return Settlement(paid=budget_of(terms, result.budget, seats).proposers[at])
    return Settlement()


def _settle_voter(
    terms: Terms, result: RoundResult, seats: Sequence[Seat], seat: Seat
) -> Settlement:
    if not result.evaluated:
        return Settlement()
    if seat.duty == Duty.DRAWN:
        return _slash(terms, terms.slash_no_show)
    if seat.duty == Duty.COMMITTED:
        acted = sum(other.voter and other.duty != Duty.DRAWN for other in seats)
        revealing = acted >= terms.majority  # with fewer, the round was void before REVEAL
        return _slash(terms, terms.slash_silent) if revealing else Settlement()
    if result.outcome == Outcome.VOID:
        return Settlement()

    others = [other.scores for other in revealed(seats) if other.who != seat.who]
    decided = right = contradictions = 0
    for item in published(seats):
        own, rest = seat.scores[item], [scores[item] for scores in others]
        up = sum(s >= terms.accept_margin for s in rest)
        for_it, against = 2 * up > terms.voters - 1, 2 * (len(rest) - up) > terms.voters - 1
        decided += for_it or against
        right += for_it if own >= terms.accept_margin else against
        contradictions += (
            own >= terms.strong_margin
            and sum(s <= -terms.strong_margin for s in rest) >= terms.quorum
        ) or (
            own <= -terms.strong_margin
            and sum(s >= terms.strong_margin for s in rest) >= terms.quorum
        )

    wrong_attestation = (
        result.outcome == Outcome.ADOPTED
        and result.support >= terms.quorum
        and any(seat.digest)
        and seat.digest not in (result.adapter_before, result.adapter_after)
    )
    bps = min(contradictions * terms.slash_contradiction, terms.slash_contradictions)
    bps += terms.slash_attestation * wrong_attestation
    if contradictions or wrong_attestation:
        return _slash(terms, bps)
    if result.attest_timed_out and not any(seat.digest):
        return Settlement()
    unit = budget_of(terms, result.budget, seats).voter
    return Settlement(paid=unit * right // decided if decided else unit // 2)


def _slash(terms: Terms, bps: int) -> Settlement:
    return Settlement(slashed=terms.bond * min(bps, BPS) // BPS)


# What a participant does next


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until` (Unix time; None: before something new is on chain)."""

    until: int | None = None


@dataclass(frozen=True)
class Stop:
    """The task is over and nothing of mine is open."""


@dataclass(frozen=True)
class OpenRound:
    """Ask for a committee."""


@dataclass(frozen=True)
class Draw:
    """Draw the committee from the hash of the draw block."""


@dataclass(frozen=True)
class Advance:
    """Push the phase on: its deadline has passed."""


@dataclass(frozen=True)
class Tally:
    """Have the updates judged."""


@dataclass(frozen=True)
class TopUp:
    """Put in what is missing to the bond."""

    amount: int


@dataclass(frozen=True)
class Reactivate:
    """Come back after too many no-shows in a row."""


@dataclass(frozen=True)
class Settle:
    """Pay or slash one seat of a closed round."""

    round: int
    who: Address


@dataclass(frozen=True)
class Propose:
    """Train and commit to an update."""

    round: int
    current: bytes


@dataclass(frozen=True)
class Publish:
    """Put the update into the store and its digest on chain."""

    round: int
    current: bytes
    commitment: bytes


@dataclass(frozen=True)
class Vote:
    """Score the published updates and commit to the scores."""

    round: int
    current: bytes
    updates: tuple[tuple[int, bytes, int], ...]
    """Item, digest and size of each published update."""


@dataclass(frozen=True)
class Reveal:
    """Open the committed scores."""

    round: int
    current: bytes
    updates: tuple[tuple[int, bytes, int], ...]
    commitment: bytes


@dataclass(frozen=True)
class Attest:
    """Aggregate the accepted updates, judge the result, name it on chain."""

    round: int
    current: bytes
    accepted: tuple[tuple[bytes, int, int], ...]
    """Digest, size and weight of each accepted update, in seat order."""


Action = (
    Wait
    | Stop
    | OpenRound
    | Draw
    | Advance
    | Tally
    | TopUp
    | Reactivate
    | Settle
    | Propose
    | Publish
    | Vote
    | Reveal
    | Attest
)

RETIRED = 3
"""No-shows in a row after which a participant is not drawn until it comes back."""

PATIENCE = 3
"""Seconds that each further keeper leaves to those before it."""


def next_action(
    terms: Terms,
    view: View,
    me: Address,
    now: int,
    *,
    block: int,
    past: Mapping[int, Sequence[Seat]],
    top_up_limit: int = 0,
) -> Action:
    """What `me` does next: a total function of what is on chain, so a restart resumes.

    Args:
        terms: of the task.
        view: of the chain's head.
        me: the participant's address.
        now: time of the head, Unix seconds.
        block: number of the head.
        past: seats of closed rounds that still have unsettled seats, by round.
        top_up_limit: the most that may be put in after the first bond.
    """
    state, mine = view.state, next((s for s in view.seats if s.who == me), None)
    keeper = _Keeper(state, view, me, now)

    if state.phase != Phase.DRAW and (open_seat := _to_settle(past, me, keeper)):
        return open_seat

    updates = tuple((i, s.digest, s.size) for i, s in published(view.seats).items())
    late = bool(state.deadline) and now >= state.deadline
    match state.phase:
        case Phase.FINISHED | Phase.CANCELLED:
            open_seats = any(not seat.settled for seats in past.values() for seat in seats)
            return Wait() if open_seats or view.me.unsettled else Stop()
        case Phase.IDLE:
            missing = terms.bond - view.me.stake
            topped_up = view.me.deposited - terms.bond
            if view.me.registered and missing > 0 and topped_up + missing <= top_up_limit:
                return TopUp(missing)
            if view.me.registered and view.me.missed >= RETIRED and missing <= 0:
                return Reactivate()
            if state.active >= terms.committee:
                return keeper.when(state.since, OpenRound())
            return Wait()
        case Phase.DRAW:
            if block > state.draw_block + 256:  # the EVM has forgotten the hash
                return keeper.when(state.since, Advance())
            return keeper.when(state.since, Draw()) if block > state.draw_block else Wait()
        case Phase.TALLY:
            return keeper.when(state.since, Tally())
        case _ if late:
            return keeper.when(state.deadline, Advance())
        case Phase.TRAIN if mine and not mine.voter and mine.duty == Duty.DRAWN:
            return Propose(state.round, state.adapter)
        case Phase.PUBLISH if mine and not mine.voter and mine.duty == Duty.COMMITTED:
            return Publish(state.round, state.adapter, mine.commitment)
        case Phase.EVALUATE if mine and mine.voter and mine.duty == Duty.DRAWN:
            return Vote(state.round, state.adapter, updates)
        case Phase.REVEAL if mine and mine.voter and mine.duty == Duty.COMMITTED:
            return Reveal(state.round, state.adapter, updates, mine.commitment)
        case Phase.ATTEST if (
            mine and mine.voter and mine.duty == Duty.DONE and not any(mine.digest)
        ):
            accepted = tuple(
                (s.digest, s.size, s.weight) for s in view.seats if s.verdict == Verdict.ACCEPTED
            )
            return Attest(state.round, state.adapter, accepted)
    return Wait(state.deadline or None)


@dataclass(frozen=True)
class _Keeper:
    """Spreads calls that anyone may make, so that not everyone pays for the same one."""

    state: State
    view: View
    me: Address
    now: int

    def rank(self) -> int:
        """0 for who goes first; seats of the running round before everyone else."""
        order = [seat.who for seat in self.view.seats]
        if self.me in order:
            return (order.index(self.me) - self.state.round) % len(order)
        if not self.view.me.index:
            return len(order) + self.state.active
        return len(order) + (self.view.me.index - self.state.round) % max(1, self.state.active)

    def when(self, since: int, action: Action) -> Action:
        """The action, once those before me had time for it."""
        turn = since + PATIENCE * self.rank()
        return action if self.now >= turn else Wait(turn)


def _to_settle(past: Mapping[int, Sequence[Seat]], me: Address, keeper: _Keeper) -> Settle | None:
    """My own seats first; those of others once they had time to do it themselves."""
    due = [Settle(number, s.who) for number, seats in past.items() for s in seats if not s.settled]
    for settle in due:
        if settle.who == me:
            return settle
    turn = keeper.when(keeper.state.since + PATIENCE, due[0]) if due else None
    return turn if isinstance(turn, Settle) else None
