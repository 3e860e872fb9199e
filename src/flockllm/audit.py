"""Recomputes a task from its events and the store: what holds, and the first thing that does not.

Nothing is believed that can be computed: seeds and seats from block hashes, verdicts from the
revealed scores, payments from the verdicts, the global adapter from the published updates. In the
end, what the contract says of itself has to be what its events give.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from flockllm.adapter import Adapter, Update, max_bytes
from flockllm.aggregate import RULES
from flockllm.chain.abi import Event
from flockllm.chain.task import Task
from flockllm.errors import AuditFailed, InvalidSpec, InvalidUpdate, NotFound, StoreError
from flockllm.rounds import (
    BPS,
    Address,
    Duty,
    Outcome,
    Participant,
    Phase,
    RoundResult,
    Seat,
    State,
    Terms,
    Verdict,
    attested_winner,
    budget_of,
    commitment,
    draw_seats,
    draw_seed,
    judge,
    published,
    revealed,
    settlement,
    unpack_scores,
    word,
)
from flockllm.store import Store, cid_of, digest_of
from flockllm.task import MAX_DEFINITION_BYTES, Definition, in_tokens

READABLE = 256
"""Blocks for which the EVM knows a block's hash."""

RETIRED = 3
"""No-shows in a row after which a participant is no longer drawn."""

NONE = bytes(32)

LENGTHS = {
    Phase.TRAIN: "train_seconds",
    Phase.PUBLISH: "publish_seconds",
    Phase.EVALUATE: "evaluate_seconds",
    Phase.REVEAL: "reveal_seconds",
    Phase.ATTEST: "attest_seconds",
}
"""The phases that time may end, and the term that says when."""


def audit(task: Task, store: Store) -> Iterator[str]:
    """Yields a sentence for each thing that holds.

    Raises:
        AuditFailed: the first thing that does not hold.
    """
    definition = _definition(task, store)
    yield f"the definition {task.spec_digest.hex()[:12]}… is in the store: task “{definition.name}”"
    adapter = Adapter.initial(definition.tensors, bytes.fromhex(definition.seed))
    _holds(
        digest_of(adapter.to_bytes()) == task.initial_adapter,
        "the first adapter does not follow from the definition's seed",
    )
    yield "the first adapter follows from the definition's seed"

    replay = Replay(task)
    for event in task.events():
        replay.apply(event)
        if event.name == "RoundClosed":
            number = event.args["round"]
            yield from replay.told(number)
            adapter, sentence = _check_content(replay.rounds[number], adapter, definition, store)
            yield f"round {number}: {sentence}"
    yield from replay.told_settlements()
    yield from replay.check_contract()
    final = replay.adapter
    _holds(
        _stored_adapter(store, final, definition) == adapter,
        "the global adapter in the store is not the one that the updates give",
    )
    yield f"the global adapter {cid_of(final, len(adapter.to_bytes()))} is in the store"


def _definition(task: Task, store: Store) -> Definition:
    try:
        return Definition.from_bytes(store.get(task.spec_digest, None, MAX_DEFINITION_BYTES))
    except (StoreError, InvalidSpec) as e:
        raise AuditFailed(f"the task's definition cannot be read: {e}") from e


def _check_content(
    played: "Round", current: Adapter, definition: Definition, store: Store
) -> tuple[Adapter, str]:
    """Checks the updates of a closed round and what they make of the adapter; tells of it."""
    name = f"round {played.number}"
    updates, gone = {}, 0
    for item, seat in published(played.seats).items():
        accepted = seat.verdict == Verdict.ACCEPTED
        try:
            updates[item] = _stored_update(store, seat, definition)
        except NotFound as e:
            _holds(not accepted, f"{name}: accepted update {item} is in no store: {e}")
            gone += 1
        except StoreError as e:
            raise AuditFailed(f"{name}: update {item} was altered or is out of reach: {e}") from e
        except InvalidUpdate as e:
            _holds(not accepted, f"{name}: accepted update {item} is no update: {e}")
    found = f"{len(updates)} updates are in the store" + (f", {gone} no longer" if gone else "")
    if played.outcome != Outcome.ADOPTED:
        return current, f"{found}; the adapter stays"
    chosen = [i for i, seat in enumerate(played.seats) if seat.verdict == Verdict.ACCEPTED]
    weights = [played.seats[i].weight for i in chosen]
    combined = RULES[definition.aggregation.rule](current, [updates[i] for i in chosen], weights)
    made = digest_of(combined.to_bytes())
    _holds(
        made == played.adapter_after,
        f"{name}: the adapter {played.adapter_after.hex()[:12]}… that was adopted is not what its "
        f"{len(chosen)} accepted updates give ({made.hex()[:12]}…)",
    )
    try:
        _stored_adapter(store, made, definition)
    except AuditFailed as e:
        if not isinstance(e.__cause__, NotFound):  # an old one may have been thrown away
            raise
    return combined, f"{found}; the {len(chosen)} accepted ones give the adapter adopted"


def _stored_update(store: Store, seat: Seat, definition: Definition) -> Update:
    codec = definition.aggregation.codec
    limit = max_bytes(definition.tensors, codec)
    if seat.size > limit:
        raise InvalidUpdate(f"{seat.size} bytes, at most {limit} allowed")
    data = store.get(seat.digest, seat.size, limit)
    return Update.from_bytes(data, definition.tensors, codec)


def _stored_adapter(store: Store, digest: bytes, definition: Definition) -> Adapter:
    size = len(Adapter.zeros(definition.tensors).to_bytes())
    try:
        return Adapter.from_bytes(store.get(digest, size, size), definition.tensors)
    except (StoreError, InvalidUpdate) as e:
        raise AuditFailed(f"the adapter {digest.hex()[:12]}… cannot be had: {e}") from e


@dataclass
class Person:
    """What the events say of one address so far; see `rounds.Participant`."""

    registered: bool = False
    stake: int = 0
    deposited: int = 0
    claimable: int = 0
    missed: int = 0
    unsettled: int = 0
    last_round: int = 0


@dataclass
class Round:
    """What the events say of one round so far; see `rounds.RoundResult`."""

    number: int
    seed: bytes
    draw_block: int
    budget: int
    adapter_before: bytes
    seats: list[Seat]
    outcome: Outcome = Outcome.OPEN
    adapter_after: bytes = NONE
    support: int = 0
    timed_out: bool = False
    last_phase: Phase = Phase.TRAIN
    paid: int = 0
    slashed: int = 0

    def result(self) -> RoundResult:
        """As the contract gives it."""
        return RoundResult(
            self.outcome,
            self.seed,
            self.draw_block,
            self.budget,
            self.adapter_before,
            self.adapter_after,
            self.support,
            self.timed_out,
            self.last_phase >= Phase.EVALUATE,
        )


@dataclass
class Replay:
    """A task played again from its events, each checked against the rules before it counts."""

    task: Task
    members: list[Address] = field(default_factory=list)
    """The active participants, in the order that seats are drawn from."""
    people: dict[Address, Person] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    digests: set[bytes] = field(default_factory=set)
    pool: int = 0
    allotted: int = 0
    number: int = 1
    phase: Phase = Phase.IDLE
    since: int | None = None
    deadline: int = 0
    draw_block: int = 0
    entropy: int = 0
    _now_retired: list[Address] = field(default_factory=list)
    _over: bool = False

    def __post_init__(self) -> None:
        self.terms: Terms = self.task.terms
        self.adapter = self.task.initial_adapter
        self._block = cache(self.task.connection.block)

    def apply(self, event: Event) -> None:
        """Checks one event and makes its changes.

        Raises:
            AuditFailed: by the rules it cannot have happened.
        """
        self._at = event
        try:
            getattr(self, f"_{_snake(event.name)}")(**event.args)
        except (LookupError, ValueError) as e:  # a round, phase or outcome that there is not
            raise AuditFailed(f"block {event.block}: {event.name} makes no sense: {e}") from e

    # Told once a round, and at the end

    def told(self, number: int) -> Iterator[str]:
        """What has been checked when a round closes."""
        played, name = self.rounds[number], f"round {number}"
        yield (
            f"{name}: seed and {len(played.seats)} seats follow from block {played.draw_block}, "
            f"the budget of {in_tokens(played.budget)} from the pool"
        )
        updates, votes = published(played.seats), revealed(played.seats)
        yield f"{name}: {len(updates)} updates and {len(votes)} votes open their commitments"
        if played.last_phase >= Phase.TALLY:
            verdicts = ", ".join(played.seats[i].verdict.name for i in updates)
            yield f"{name}: the verdicts {verdicts} follow from the revealed scores"
        yield (
            f"{name}: {played.outcome.name}, with {played.support} of {self.terms.voters} "
            "voters for its adapter"
        )

    def told_settlements(self) -> Iterator[str]:
        """What has been checked of the money of each round."""
        for number, played in self.rounds.items():
            settled = sum(seat.settled for seat in played.seats)
            yield (
                f"round {number}: {settled} of {len(played.seats)} seats settled as the rules "
                f"say: {in_tokens(played.paid)} paid, {in_tokens(played.slashed)} slashed"
            )

    def check_contract(self) -> Iterator[str]:
        """Holds what the contract says of itself now against what its events give."""
        task = self.task
        since = self.since
        if since is None:  # nothing but registrations so far; no event tells when it was made
            since = task.look(task.creator).state.since
        state = State(
            self.number,
            self.phase,
            since,
            self.deadline,
            self.draw_block,
            self.adapter,
            self.pool,
            self.allotted,
            len(self.members),
        )
        said = task.look(task.creator).state
        _holds(said == state, f"the contract's state is {said}, its events give {state}")
        _holds(task.entropy() == self.entropy, "the contract's entropy is not what events give")
        for who, person in self.people.items():
            place = self.members.index(who) + 1 if who in self.members else 0
            given = Participant(
                person.registered,
                person.stake,
                person.deposited,
                person.claimable,
                place,
                person.missed,
                person.unsettled,
                person.last_round,
            )
            found = task.participant(who)
            _holds(found == given, f"{who}: the contract says {found}, its events give {given}")
        for number, played in self.rounds.items():
            seats = task.seats(number)
            _holds(
                list(seats) == played.seats,
                f"round {number}: the contract's seats are not what its events give",
            )
            _holds(
                task.result(number) == played.result(),
                f"round {number}: the contract's result is not what its events give",
            )
        yield (
            f"the contract says of state, {len(self.people)} addresses and {len(self.rounds)} "
            "rounds what its events give"
        )
        owed = self.pool + self.allotted
        owed += sum(person.stake + person.claimable for person in self.people.values())
        held = task.token.balance(task.address)
        _holds(held >= owed, f"the task holds {in_tokens(held)}, but owes {in_tokens(owed)} in all")
        gift = f", and {in_tokens(held - owed)} that nobody booked" if held > owed else ""
        yield f"the task holds {in_tokens(owed)}: stakes, pool, allotted and claimable{gift}"

    # Who takes part

    def _registered(self, who: Address, amount: int) -> None:
        person = self._person(who)
        self._must(not person.registered, f"{who} was registered already")
        self._must(amount >= self.terms.bond, f"{who} registered with less than the bond")
        self._list_open()
        person.registered, person.missed = True, 0
        person.stake += amount
        person.deposited += amount
        self._join(who)

    def _topped_up(self, who: Address, amount: int, stake: int) -> None:
        person = self._person(who)
        self._must(person.registered, f"{who} topped up without being registered")
        self._list_open()
        person.stake += amount
        person.deposited += amount
        self._must(person.stake == stake, f"{who} has another stake than its events give")
        if person.stake >= self.terms.bond and person.missed < RETIRED:
            self._join(who)

    def _reactivated(self, who: Address) -> None:
        person = self._person(who)
        able = person.missed == RETIRED and person.stake >= self.terms.bond
        self._must(able, f"{who} reactivated without being retired with a bond")
        self._list_open()
        person.missed = 0
        self._join(who)

    def _retired(self, who: Address, round: int) -> None:
        self._now_retired.append(who)

    def _exited(self, who: Address, amount: int) -> None:
        person = self._person(who)
        self._must(person.registered and not person.unsettled, f"{who} left with unsettled seats")
        self._list_open()
        self._must(amount == person.stake, f"{who} left with another stake than it had")
        person.registered, person.missed, person.stake = False, 0, 0
        person.claimable += amount
        self._leave(who)

    def _claimed(self, who: Address, amount: int) -> None:
        person = self._person(who)
        self._must(
            0 < amount == person.claimable,
            f"{who} claimed {in_tokens(amount)} of {in_tokens(person.claimable)}",
        )
        person.claimable = 0

    def _funded(self, who: Address, amount: int) -> None:
        self._must(self.phase < Phase.FINISHED and amount > 0, "funded when it was over")
        self.pool += amount

    # A round's way

    def _round_opened(self, round: int, draw_block: int) -> None:
        at = self._at.block
        again = self.draw_block == 0 or at > self.draw_block + READABLE
        self._must(
            self.phase == Phase.DRAW and round == self.number and draw_block == at + 1 and again,
            "its draw block is not the next one",
        )
        self.draw_block = draw_block

    def _committee_drawn(
        self, round: int, seed: bytes, draw_block: int, budget: int, members: Sequence[Address]
    ) -> None:
        at, task = self._at.block, self.task
        self._must(
            self.phase == Phase.DRAW and round == self.number and draw_block == self.draw_block,
            "its committee was drawn for another round or block",
        )
        self._must(
            draw_block < at <= draw_block + READABLE, "its draw came before or too long after"
        )
        block = self._block(draw_block)
        expected = draw_seed(task.chain_id, task.address, round, block.hash, self.entropy)
        self._must(seed == expected, f"its seed does not follow from block {draw_block}")
        count = self.terms.committee
        drawn = [self.members[i] for i in draw_seats(seed, len(self.members), count)]
        self._must(list(members) == drawn, "its seats do not follow from its seed")
        share = self.pool // (self.terms.rounds - round + 1)
        self._must(budget == share, "its budget is not the pool over the rounds left")

        self.pool -= budget
        self.allotted += budget
        self.entropy = 0
        seats = [
            Seat(
                who,
                i >= self.terms.proposers,
                Duty.DRAWN,
                NONE,
                NONE,
                0,
                (),
                Verdict.NONE,
                0,
                settled=False,
            )
            for i, who in enumerate(members)
        ]
        self.rounds[round] = Round(round, seed, draw_block, budget, self.adapter, seats)
        for who in members:
            self._person(who).unsettled += 1
            self._person(who).last_round = round

    def _update_committed(self, round: int, proposer: Address, commitment: bytes) -> None:
        self._act(round, proposer, Phase.TRAIN, Duty.DRAWN, voter=False)
        self._set(proposer, duty=Duty.COMMITTED, commitment=commitment)
        self._person(proposer).missed = 0

    def _abstained(self, round: int, proposer: Address) -> None:
        self._act(round, proposer, Phase.TRAIN, Duty.DRAWN, voter=False)
        self._set(proposer, duty=Duty.ABSTAINED)
        self._person(proposer).missed = 0

    def _update_published(
        self, round: int, proposer: Address, digest: bytes, size: int, salt: bytes
    ) -> None:
        seat = self._act(round, proposer, Phase.PUBLISH, Duty.COMMITTED, voter=False)
        self._must(
            self._opens(seat, digest, salt), f"{proposer}'s update does not open its commitment"
        )
        self._must(digest not in self.digests, f"{proposer} published what was published before")
        self.digests.add(digest)
        self.entropy ^= int.from_bytes(salt)
        self._set(proposer, duty=Duty.DONE, digest=digest, size=size)

    def _vote_committed(self, round: int, voter: Address, commitment: bytes) -> None:
        self._act(round, voter, Phase.EVALUATE, Duty.DRAWN, voter=True)
        self._set(voter, duty=Duty.COMMITTED, commitment=commitment)
        self._person(voter).missed = 0

    def _vote_revealed(self, round: int, voter: Address, scores: int, salt: bytes) -> None:
        seat = self._act(round, voter, Phase.REVEAL, Duty.COMMITTED, voter=True)
        self._must(
            self._opens(seat, word(scores), salt), f"{voter}'s scores do not open its commitment"
        )
        self.entropy ^= int.from_bytes(salt)
        self._set(voter, duty=Duty.DONE, scores=unpack_scores(scores, self.terms.proposers))

    def _update_judged(self, round: int, proposer: Address, verdict: int, weight: int) -> None:
        self._must(round == self.number and self.phase == Phase.TALLY, "it was judged too early")
        seats = self._seats
        items = {seats[i].who: i for i in published(seats) if not seats[i].verdict}
        self._must(
            next(iter(items), None) == proposer, f"{proposer}'s update was judged out of turn"
        )
        item = items[proposer]
        judgement = judge(self.terms, [seat.scores[item] for seat in revealed(seats)])
        self._must(
            (verdict, weight) == (judgement.verdict, judgement.weight),
            f"by the revealed scores {proposer}'s update is {judgement.verdict.name} with weight "
            f"{judgement.weight}, not {Verdict(verdict).name} with {weight}",
        )
        self._set(proposer, verdict=judgement.verdict, weight=judgement.weight)

    def _attested(self, round: int, voter: Address, digest: bytes) -> None:
        seat = self._act(round, voter, Phase.ATTEST, Duty.DONE, voter=True)
        self._must(seat.digest == NONE and digest != NONE, f"{voter} attested twice, or nothing")
        self._set(voter, digest=digest)

    def _round_closed(self, round: int, outcome: int, adapter: bytes, returned: int) -> None:
        self._must(round == self.number, "another round closed")
        played, phase = self.rounds[round], self.phase
        self._end_phase()
        self._must(not self._goes_on(), f"it closed in {phase.name}, where it had to go on")
        winner = attested_winner(self.terms, played.seats)
        played.last_phase = phase
        played.adapter_after = winner or self.adapter
        if winner:
            played.support = sum(s.digest == winner for s in revealed(played.seats))
        judged = phase in (Phase.TALLY, Phase.ATTEST)
        adopted = winner is not None and winner != self.adapter
        played.outcome = (
            Outcome.VOID if not judged else Outcome.ADOPTED if adopted else Outcome.KEPT
        )
        waiting = any(seat.digest == NONE for seat in revealed(played.seats))
        below = played.support < self.terms.quorum
        played.timed_out = phase == Phase.ATTEST and below and waiting
        self._must(
            outcome == played.outcome and adapter == played.adapter_after,
            f"it closed as {Outcome(outcome).name} with {adapter.hex()[:12]}…; the attestations "
            f"give {played.outcome.name} with {played.adapter_after.hex()[:12]}…",
        )
        back = played.budget
        if judged:
            back = budget_of(self.terms, played.budget, played.seats).returned
        self._must(returned == back, "what returned to the pool is not what no seat can get")
        self.allotted -= returned
        self.pool += returned
        self.adapter = adapter

    def _phase_entered(self, round: int, phase: int, deadline: int) -> None:
        entered, now = Phase(phase), self._block(self._at.block).timestamp
        closed = self.number in self.rounds and self.rounds[self.number].outcome != Outcome.OPEN
        if self._over:
            expected = Phase.CANCELLED
        elif closed:
            self.number += 1
            expected = Phase.IDLE if self.number <= self.terms.rounds else Phase.FINISHED
        elif self.phase == Phase.IDLE:
            enough = len(self.members) >= self.terms.committee
            self._must(enough, "it opened with too few participants")
            expected, self.draw_block = Phase.DRAW, 0
        elif self.phase == Phase.DRAW:
            self._must(self.number in self.rounds, "it began without a committee")
            expected = Phase.TRAIN
        else:
            self._end_phase()
            self._must(self._goes_on(), f"it went on from {self.phase.name}, where it had to close")
            expected = Phase(self.phase + 1)
        length = getattr(self.terms, LENGTHS[expected]) if expected in LENGTHS else None
        self._must(
            (round, entered) == (self.number, expected)
            and deadline == (0 if length is None else now + length),
            f"it entered {entered.name} until {deadline} at {now}; {expected.name} was next",
        )
        self.phase, self.since, self.deadline = entered, now, deadline

    def _seat_settled(
        self,
        round: int,
        who: Address,
        keeper: Address,
        paid: int,
        slashed: int,
        keeper_paid: int,
        returned: int,
    ) -> None:
        self._list_open()
        closed = round in self.rounds and self.rounds[round].outcome != Outcome.OPEN
        self._must(closed, f"a seat of round {round} was settled before its end")
        played, person = self.rounds[round], self._person(who)
        at = next((i for i, s in enumerate(played.seats) if s.who == who), None)
        if at is None or played.seats[at].settled:
            raise AuditFailed(f"round {round}: {who} had no seat to settle")
        seat = played.seats[at]
        rule = settlement(self.terms, played.result(), played.seats, at)
        cut = min(rule.slashed, person.stake)
        to_keeper = 0 if keeper == who else cut * self.terms.keeper_share // BPS
        due = rule.paid
        if seat.voter and played.outcome != Outcome.VOID:
            due = budget_of(self.terms, played.budget, played.seats).voter
        expected = (rule.paid, cut, to_keeper, due - rule.paid + cut - to_keeper)
        self._must(
            (paid, slashed, keeper_paid, returned) == expected,
            f"{who} of round {round} was paid {in_tokens(paid)} and slashed {in_tokens(slashed)}, "
            f"the rules say {in_tokens(rule.paid)} and {in_tokens(cut)}",
        )
        played.seats[at] = replace(seat, settled=True)
        played.paid += paid
        played.slashed += slashed
        self.allotted -= due
        self.pool += returned
        person.claimable += paid
        person.stake -= slashed
        person.unsettled -= 1
        self._person(keeper).claimable += keeper_paid
        if slashed and person.stake < self.terms.bond:
            self._leave(who)

    def _cancelled(self, round: int) -> None:
        idle = self.phase == Phase.IDLE and len(self.members) < self.terms.committee
        self._must(idle and round == self.number, "it was cancelled while it could go on")
        self._over = True

    def _rest_withdrawn(self, amount: int) -> None:
        over = self.phase in (Phase.FINISHED, Phase.CANCELLED)
        self._must(over and amount == self.pool, "the creator took what was not its own")
        self._person(self.task.creator).claimable += amount
        self.pool = 0

    # What several events share

    @property
    def _seats(self) -> list[Seat]:
        return self.rounds[self.number].seats

    def _person(self, who: Address) -> Person:
        return self.people.setdefault(who, Person())

    def _must(self, condition: bool, otherwise: str) -> None:
        _holds(condition, f"round {self.number}, block {self._at.block}: {otherwise}")

    def _list_open(self) -> None:
        self._must(self.phase != Phase.DRAW, f"{self._at.name} while seats were being drawn")

    def _join(self, who: Address) -> None:
        if who not in self.members:
            self.members.append(who)

    def _leave(self, who: Address) -> None:
        """The last member fills the hole."""
        if who in self.members:
            last = self.members.pop()
            if last != who:
                self.members[self.members.index(who)] = last

    def _act(self, round: int, who: Address, phase: Phase, duty: Duty, *, voter: bool) -> Seat:
        """The seat of one who acts, if it may do so now."""
        seats = self._seats if self.number in self.rounds else []
        seat = next((seat for seat in seats if seat.who == who), None)
        now = self._block(self._at.block).timestamp
        able = seat is not None and (seat.voter, seat.duty) == (voter, duty)
        running = (round, self.phase) == (self.number, phase) and now < self.deadline
        self._must(able and running, f"{who} could not do {self._at.name} then")
        assert seat is not None  # noqa: S101  `able` says so
        return seat

    def _set(self, who: Address, **changes: object) -> None:
        seats = self._seats
        at = next(i for i, seat in enumerate(seats) if seat.who == who)
        seats[at] = replace(seats[at], **changes)  # type: ignore[arg-type]

    def _opens(self, seat: Seat, content: bytes, salt: bytes) -> bool:
        task = self.task
        opened = commitment(task.chain_id, task.address, self.number, seat.who, content, salt)
        return opened == seat.commitment

    def _counts(self) -> tuple[int, int, int]:
        """Of the phase: seats that still may act, what was done, and how much is needed."""
        proposers = self._seats[: self.terms.proposers]
        voters = self._seats[self.terms.proposers :]

        def count(seats: Sequence[Seat], *duties: Duty) -> int:
            return sum(seat.duty in duties for seat in seats)

        majority = self.terms.majority
        match self.phase:
            case Phase.TRAIN:
                return count(proposers, Duty.DRAWN), count(proposers, Duty.COMMITTED), 1
            case Phase.PUBLISH:
                return count(proposers, Duty.COMMITTED), count(proposers, Duty.DONE), 1
            case Phase.EVALUATE:
                return count(voters, Duty.DRAWN), count(voters, Duty.COMMITTED), majority
            case Phase.REVEAL:
                return count(voters, Duty.COMMITTED), count(voters, Duty.DONE), majority
            case Phase.TALLY:
                done = [seat for seat in proposers if seat.duty == Duty.DONE]
                accepted = sum(seat.verdict == Verdict.ACCEPTED for seat in done)
                return sum(seat.verdict == Verdict.NONE for seat in done), accepted, 1
        winner = attested_winner(self.terms, self._seats)
        support = sum(seat.digest == winner for seat in revealed(self._seats))
        waiting = sum(seat.digest == NONE for seat in revealed(self._seats))
        # ATTEST is the last phase: whatever was done, the round closes.
        return 0 if winner and support >= self.terms.quorum else waiting, 0, 1

    def _goes_on(self) -> bool:
        _, done, needed = self._counts()
        return done >= needed

    def _end_phase(self) -> None:
        """Whether the phase could end now; counts its no-shows."""
        waiting, _, _ = self._counts()
        now = self._block(self._at.block).timestamp
        late = bool(self.deadline) and now >= self.deadline
        self._must(not waiting or late, f"{self.phase.name} ended before its time")
        retired = []
        if self.phase in (Phase.TRAIN, Phase.EVALUATE):
            voters = self.phase == Phase.EVALUATE
            for seat in self._seats:
                if seat.voter == voters and seat.duty == Duty.DRAWN:
                    self._person(seat.who).missed += 1
                    if self._person(seat.who).missed == RETIRED:
                        retired.append(seat.who)
                        self._leave(seat.who)
        self._must(
            retired == self._now_retired, "others were retired than those who did not show up"
        )
        self._now_retired = []


def _holds(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AuditFailed(otherwise)


def _snake(name: str) -> str:
    """`RoundOpened` as `round_opened`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
