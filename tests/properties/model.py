"""A task in Python, written from the rules and not from the contract.

What a call does and why it is refused; `flockllm.rounds` says who is drawn, judged and paid how.
Time and blocks are given. The game beside this file holds the contract against it at every step.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flockllm import rounds
from flockllm.rounds import BPS, Duty, Outcome, Phase, Seat, Terms, Verdict

NOTHING = bytes(32)
Money = dict[str, int]


class Refused(Exception):
    """A call that breaks a rule; the message is the contract's reason."""


def need(condition: object, reason: str) -> None:
    """Refuses a call."""
    if not condition:
        raise Refused(f"task: {reason}")


@dataclass
class Person:
    """What a task knows of one address."""

    registered: bool = False
    stake: int = 0
    deposited: int = 0
    claimable: int = 0
    missed: int = 0
    unsettled: int = 0
    last_round: int = 0


@dataclass
class Played:
    """One round, from its draw on."""

    seed: bytes
    draw_block: int
    budget: int
    adapter_before: bytes
    seats: list[Seat]
    outcome: Outcome = Outcome.OPEN
    adapter_after: bytes = NOTHING
    support: int = 0
    timed_out: bool = False
    evaluated: bool = False

    def result(self) -> rounds.RoundResult:
        """As the contract tells it."""
        return rounds.RoundResult(
            outcome=self.outcome,
            seed=self.seed,
            draw_block=self.draw_block,
            budget=self.budget,
            adapter_before=self.adapter_before,
            adapter_after=self.adapter_after,
            support=self.support,
            attest_timed_out=self.timed_out,
            evaluated=self.evaluated,
        )


@dataclass
class Model:
    """A task. Every call is a method with the contract's name: caller first, then its arguments."""

    terms: Terms
    address: str
    chain_id: int
    creator: str
    adapter: bytes
    pool: int
    block_hash: Callable[[int], bytes]
    now: int
    block: int
    round: int = 1
    phase: Phase = Phase.IDLE
    since: int = 0
    deadline: int = 0
    draw_block: int = 0
    allotted: int = 0
    entropy: int = 0
    judged: int = 0
    balance: int = 0
    active: list[str] = field(default_factory=list)
    people: dict[str, Person] = field(default_factory=lambda: defaultdict(Person))
    played: dict[int, Played] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.since, self.balance = self.now, self.pool

    # looking

    def view(self, who: str) -> rounds.View:
        """What a node sees."""
        person = self.people[who]
        return rounds.View(
            state=rounds.State(
                round=self.round,
                phase=self.phase,
                since=self.since,
                deadline=self.deadline,
                draw_block=self.draw_block,
                adapter=self.adapter,
                pool=self.pool,
                allotted=self.allotted,
                active=len(self.active),
            ),
            seats=tuple(self.seats),
            me=rounds.Participant(
                registered=person.registered,
                stake=person.stake,
                deposited=person.deposited,
                claimable=person.claimable,
                index=self.active.index(who) + 1 if who in self.active else 0,
                missed=person.missed,
                unsettled=person.unsettled,
                last_round=person.last_round,
            ),
        )

    @property
    def seats(self) -> list[Seat]:
        """The running round's seats."""
        return self.played[self.round].seats if self.round in self.played else []

    # money and the list

    def register(self, who: str, amount: int) -> None:
        """Anyone not registered."""
        person = self.people[who]
        need(self.phase != Phase.DRAW, "drawing")
        need(self.phase < Phase.FINISHED, "over")
        need(not person.registered, "registered already")
        need(amount >= self.terms.bond, "less than the bond")
        person.registered, person.missed = True, 0
        self._put_in(person, amount)
        self._join(who)

    def top_up(self, who: str, amount: int) -> None:
        """Any participant."""
        person = self.people[who]
        need(self.phase != Phase.DRAW, "drawing")
        need(person.registered, "not registered")
        need(amount > 0, "nothing to add")
        self._put_in(person, amount)
        if person.stake >= self.terms.bond and person.missed < 3:
            self._join(who)

    def reactivate(self, who: str) -> None:
        """Retired participants."""
        person = self.people[who]
        need(self.phase != Phase.DRAW, "drawing")
        need(person.missed == 3, "not retired")
        need(person.stake >= self.terms.bond, "less than the bond")
        person.missed = 0
        self._join(who)

    def exit(self, who: str) -> None:
        """Participants without open seats."""
        person = self.people[who]
        need(self.phase != Phase.DRAW, "drawing")
        need(person.registered, "not registered")
        need(not person.unsettled, "unsettled seat")
        person.registered, person.missed = False, 0
        person.claimable, person.stake = person.claimable + person.stake, 0
        self._drop(who)

    def claim(self, who: str) -> None:
        """Anyone with something to claim."""
        person = self.people[who]
        need(person.claimable, "nothing to claim")
        self.balance, person.claimable = self.balance - person.claimable, 0

    def fund(self, _who: str, amount: int) -> None:
        """Anyone."""
        need(self.phase < Phase.FINISHED, "over")
        need(amount > 0, "nothing to add")
        self.pool += amount
        self.balance += amount

    def _put_in(self, person: Person, amount: int) -> None:
        person.stake += amount
        person.deposited += amount
        self.balance += amount

    def _join(self, who: str) -> None:
        if who not in self.active:
            self.active.append(who)

    def _drop(self, who: str) -> None:
        if who in self.active:
            at, last = self.active.index(who), self.active.pop()
            if last != who:
                self.active[at] = last

    # a round's way

    def open_round(self, _who: str) -> None:
        """Anyone."""
        need(self.phase == Phase.IDLE, "wrong phase")
        need(len(self.active) >= self.terms.committee, "too few participants")
        self.draw_block = self.block + 1
        self._enter(Phase.DRAW)

    def draw(self, _who: str) -> None:
        """Anyone."""
        need(self.phase == Phase.DRAW, "wrong phase")
        need(self.block > self.draw_block, "draw block not mined")
        need(self.block - self.draw_block <= 256, "draw block forgotten")
        seed = rounds.draw_seed(
            self.chain_id,
            self.address,
            self.round,
            self.block_hash(self.draw_block),
            self.entropy,
        )
        self.entropy = 0
        budget = self.pool // (self.terms.rounds - self.round + 1)
        self.pool, self.allotted = self.pool - budget, self.allotted + budget
        drawn = rounds.draw_seats(seed, len(self.active), self.terms.committee)
        seats = []
        for at, index in enumerate(drawn):
            who = self.active[index]
            self.people[who].unsettled += 1
            self.people[who].last_round = self.round
            voter = at >= self.terms.proposers
            seats.append(
                Seat(who, voter, Duty.DRAWN, NOTHING, NOTHING, 0, (), Verdict.NONE, 0, False)
            )
        self.played[self.round] = Played(seed, self.draw_block, budget, self.adapter, seats)
        self._enter(Phase.TRAIN, self.terms.train_seconds)

    def advance(self, _who: str) -> None:
        """Anyone, late."""
        if self.phase == Phase.DRAW:
            need(self.block - self.draw_block > 256, "too early")
            self.draw_block = self.block + 1
            return
        need(self.deadline, "nothing to advance")
        need(self.now >= self.deadline, "too early")
        self._leave()

    def tally(self, _who: str, limit: int) -> None:
        """Anyone."""
        need(self.phase == Phase.TALLY, "wrong phase")
        need(limit > 0, "nothing to do")
        scores = [seat.scores for seat in rounds.revealed(self.seats)]
        for item in range(self.judged, min(self.judged + limit, self.terms.proposers)):
            seat = self.seats[item]
            if seat.duty == Duty.DONE:
                verdict = rounds.judge(self.terms, [s[item] for s in scores])
                self.seats[item] = replace(seat, verdict=verdict.verdict, weight=verdict.weight)
            self.judged = item + 1
        if self.judged == self.terms.proposers:
            self._leave()

    def _enter(self, phase: Phase, seconds: int = 0) -> None:
        self.phase, self.since = phase, self.now
        self.deadline = self.now + seconds if seconds else 0

    def _leave(self) -> None:
        """Ends the phase, because all have acted or it is time."""
        terms, proposers = self.terms, self.seats[: self.terms.proposers]
        voters = self.seats[self.terms.proposers :]
        match self.phase:
            case Phase.TRAIN:
                self._missed(proposers)
                if all(seat.duty != Duty.COMMITTED for seat in proposers):
                    return self._close(void=True)
                self._enter(Phase.PUBLISH, terms.publish_seconds)
            case Phase.PUBLISH:
                if not rounds.published(self.seats):
                    return self._close(void=True)
                self._enter(Phase.EVALUATE, terms.evaluate_seconds)
            case Phase.EVALUATE:
                self._missed(voters)
                if sum(seat.duty == Duty.COMMITTED for seat in voters) < terms.majority:
                    return self._close(void=True)
                self._enter(Phase.REVEAL, terms.reveal_seconds)
            case Phase.REVEAL:
                if len(rounds.revealed(self.seats)) < terms.majority:
                    return self._close(void=True)
                self.judged = 0
                self._enter(Phase.TALLY)
            case Phase.TALLY:
                if all(seat.verdict != Verdict.ACCEPTED for seat in proposers):
                    return self._close()
                self._enter(Phase.ATTEST, terms.attest_seconds)
            case _:
                self._close()

    def _missed(self, seats: list[Seat]) -> None:
        for seat in seats:
            if seat.duty == Duty.DRAWN:
                self.people[seat.who].missed += 1
                if self.people[seat.who].missed == 3:
                    self._drop(seat.who)

    def _close(self, void: bool = False) -> None:
        played = self.played[self.round]
        said = [seat.digest for seat in rounds.revealed(self.seats)]
        winner = rounds.attested_winner(self.terms, self.seats)
        played.outcome = Outcome.VOID if void else Outcome.KEPT
        if winner:
            played.support = said.count(winner)
            if winner != self.adapter:
                played.outcome = Outcome.ADOPTED
                self.adapter = winner
        played.adapter_after = self.adapter
        played.evaluated = self.phase >= Phase.EVALUATE
        played.timed_out = (
            self.phase == Phase.ATTEST and NOTHING in said and played.support < self.terms.quorum
        )
        back = played.budget
        if not void:
            back = rounds.budget_of(self.terms, played.budget, self.seats).returned
        self.allotted, self.pool = self.allotted - back, self.pool + back
        self.round += 1
        self._enter(Phase.IDLE if self.round <= self.terms.rounds else Phase.FINISHED)

    # acts of a seat

    def _running(self, number: int, phase: Phase) -> None:
        need(number == self.round, "wrong round")
        need(self.phase == phase, "wrong phase")
        need(self.now < self.deadline, "late")

    def _at(self, who: str, voter: bool) -> int:
        for at, seat in enumerate(self.seats):
            if seat.who == who and seat.voter == voter:
                return at
        raise Refused("task: not a voter" if voter else "task: not a proposer")

    def _act(self, at: int, waiting: Callable[[Seat], bool], **change: object) -> None:
        """Changes a seat; the phase ends when nobody is waited for any more."""
        self.seats[at] = replace(self.seats[at], **change)
        if not any(waiting(seat) for seat in self.seats):
            self._leave()

    def _commitment(self, who: str, content: bytes, salt: bytes) -> bytes:
        return rounds.commitment(self.chain_id, self.address, self.round, who, content, salt)

    def commit_update(self, who: str, number: int, commitment: bytes) -> None:
        """Proposers."""
        self._train(who, number, duty=Duty.COMMITTED, commitment=commitment)

    def abstain(self, who: str, number: int) -> None:
        """Proposers."""
        self._train(who, number, duty=Duty.ABSTAINED)

    def _train(self, who: str, number: int, **change: object) -> None:
        self._running(number, Phase.TRAIN)
        at = self._at(who, voter=False)
        need(self.seats[at].duty == Duty.DRAWN, "done already")
        self.people[who].missed = 0
        self._act(at, lambda seat: not seat.voter and seat.duty == Duty.DRAWN, **change)

    def publish_update(self, who: str, number: int, digest: bytes, size: int, salt: bytes) -> None:
        """Proposers that committed."""
        self._running(number, Phase.PUBLISH)
        at = self._at(who, voter=False)
        need(self.seats[at].duty == Duty.COMMITTED, "no open commitment")
        need(any(digest), "no digest")
        need(size < 2**48, "size too large")
        need(digest not in self.seen, "digest seen before")
        opened = self._commitment(who, digest, salt)
        need(self.seats[at].commitment == opened, "wrong opening")
        self.seen.add(digest)
        self.entropy ^= int.from_bytes(salt)
        self._act(
            at,
            lambda seat: not seat.voter and seat.duty == Duty.COMMITTED,
            duty=Duty.DONE,
            digest=digest,
            size=size,
        )

    def commit_vote(self, who: str, number: int, commitment: bytes) -> None:
        """Voters."""
        self._running(number, Phase.EVALUATE)
        at = self._at(who, voter=True)
        need(self.seats[at].duty == Duty.DRAWN, "done already")
        self.people[who].missed = 0
        self._act(
            at,
            lambda seat: seat.voter and seat.duty == Duty.DRAWN,
            duty=Duty.COMMITTED,
            commitment=commitment,
        )

    def reveal_vote(self, who: str, number: int, scores: int, salt: bytes) -> None:
        """Voters that committed."""
        self._running(number, Phase.REVEAL)
        at = self._at(who, voter=True)
        need(self.seats[at].duty == Duty.COMMITTED, "no open commitment")
        opened = self._commitment(who, rounds.word(scores), salt)
        need(self.seats[at].commitment == opened, "wrong opening")
        self.entropy ^= int.from_bytes(salt)
        self._act(
            at,
            lambda seat: seat.voter and seat.duty == Duty.COMMITTED,
            duty=Duty.DONE,
            scores=rounds.unpack_scores(scores, self.terms.proposers),
        )

    def attest(self, who: str, number: int, digest: bytes) -> None:
        """Voters that revealed."""
        self._running(number, Phase.ATTEST)
        at = self._at(who, voter=True)
        need(self.seats[at].duty == Duty.DONE, "not revealed")
        need(not any(self.seats[at].digest), "done already")
        need(any(digest), "no digest")
        support = 1 + sum(seat.voter and seat.digest == digest for seat in self.seats)
        enough = support >= self.terms.quorum
        self._act(
            at,
            lambda seat: (
                seat.voter and seat.duty == Duty.DONE and not any(seat.digest) and not enough
            ),
            digest=digest,
        )

    # after a round

    def settle(self, keeper: str, number: int, who: str) -> None:
        """Anyone."""
        need(self.phase != Phase.DRAW, "drawing")
        seats = self.played[number].seats if number in self.played else []
        at = next((at for at, seat in enumerate(seats) if seat.who == who), None)
        if at is None:
            raise Refused("task: no such seat")
        need(number < self.round, "round not closed")
        need(not seats[at].settled, "settled already")
        played, person = self.played[number], self.people[who]
        settlement = rounds.settlement(self.terms, played.result(), seats, at)
        due = settlement.paid
        if seats[at].voter:
            due = 0
            if played.outcome != Outcome.VOID:
                due = rounds.budget_of(self.terms, played.budget, seats).voter
        slashed = min(settlement.slashed, person.stake)
        kept = slashed * self.terms.keeper_share // BPS if keeper != who else 0
        person.unsettled -= 1
        person.stake -= slashed
        person.claimable += settlement.paid
        self.people[keeper].claimable += kept
        self.allotted -= due
        self.pool += due - settlement.paid + slashed - kept
        if slashed and person.stake < self.terms.bond:
            self._drop(who)
        seats[at] = replace(seats[at], settled=True)

    # the creator

    def cancel(self, who: str) -> None:
        """The creator, after waiting."""
        need(who == self.creator, "not the creator")
        need(self.phase == Phase.IDLE, "wrong phase")
        need(len(self.active) < self.terms.committee, "enough participants")
        need(self.now >= self.since + self.terms.idle_timeout, "too early")
        self._enter(Phase.CANCELLED)

    def withdraw_rest(self, who: str) -> None:
        """The creator, in the end."""
        need(who == self.creator, "not the creator")
        need(self.phase >= Phase.FINISHED, "not over")
        need(self.pool, "nothing to withdraw")
        self.people[who].claimable += self.pool
        self.pool = 0
