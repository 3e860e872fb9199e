"""A task as a client knows it that has read nothing but events (and the terms)."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from flockllm import rounds
from flockllm.rounds import Duty, Outcome, Phase, Seat, Terms, Verdict
from flockllm.simulate.evm import to_checksum_address
from tests.properties.model import NOTHING, Person


@dataclass
class Replay:
    """Each event is a method with the event's name, its values the arguments."""

    terms: Terms
    creator: str
    adapter: bytes
    pool: int
    since: int
    now: int = 0
    round: int = 1
    phase: Phase = Phase.IDLE
    deadline: int = 0
    draw_block: int = 0
    allotted: int = 0
    entropy: int = 0
    active: list[str] = field(default_factory=list)
    people: dict[str, Person] = field(default_factory=lambda: defaultdict(Person))
    seats: dict[int, list[Seat]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def read(self, now: int, name: str, values: tuple) -> None:
        """Takes in one event."""
        self.now = now
        named = [to_checksum_address(v) if isinstance(v, str) else v for v in values]
        getattr(self, name)(*named)

    def view(self, who: str) -> rounds.View:
        """What `look` would say."""
        person = self.people[who]
        state = rounds.State(
            *(self.round, self.phase, self.since, self.deadline, self.draw_block),
            *(self.adapter, self.pool, self.allotted, len(self.active)),
        )
        me = rounds.Participant(
            *(person.registered, person.stake, person.deposited, person.claimable),
            self.active.index(who) + 1 if who in self.active else 0,
            *(person.missed, person.unsettled, person.last_round),
        )
        return rounds.View(state, tuple(self.seats[self.round]), me)

    def _join(self, who: str) -> None:
        if who not in self.active:
            self.active.append(who)

    def _drop(self, who: str) -> None:
        if who in self.active:
            at, last = self.active.index(who), self.active.pop()
            if last != who:
                self.active[at] = last

    def _seat(self, number: int, who: str, **change: object) -> None:
        at = next(at for at, seat in enumerate(self.seats[number]) if seat.who == who)
        self.seats[number][at] = replace(self.seats[number][at], **change)

    def Registered(self, who: str, amount: int) -> None:
        """A new participant."""
        person = self.people[who]
        person.registered, person.missed = True, 0
        person.stake += amount
        person.deposited += amount
        self._join(who)

    def ToppedUp(self, who: str, amount: int, stake: int) -> None:
        """More stake, and perhaps a place."""
        person = self.people[who]
        person.stake += amount
        person.deposited += amount
        assert person.stake == stake
        if stake >= self.terms.bond and person.missed < 3:
            self._join(who)

    def Reactivated(self, who: str) -> None:
        """Back from retirement."""
        self.people[who].missed = 0
        self._join(who)

    def Retired(self, who: str, number: int) -> None:
        """The third no-show; PhaseEntered or RoundClosed, which follows, counts it."""
        assert number == self.round
        self._drop(who)

    def Exited(self, who: str, amount: int) -> None:
        """Out."""
        person = self.people[who]
        assert person.stake == amount
        person.registered, person.missed, person.stake = False, 0, 0
        person.claimable += amount
        self._drop(who)

    def Claimed(self, who: str, amount: int) -> None:
        """Tokens left."""
        assert self.people[who].claimable == amount
        self.people[who].claimable = 0

    def Funded(self, _who: str, amount: int) -> None:
        """Tokens came."""
        self.pool += amount

    def RoundOpened(self, number: int, draw_block: int) -> None:
        """A draw block was fixed."""
        assert number == self.round
        self.draw_block = draw_block

    def CommitteeDrawn(
        self, number: int, _seed: bytes, draw_block: int, budget: int, members: tuple[str, ...]
    ) -> None:
        """Who has a seat."""
        assert (number, draw_block) == (self.round, self.draw_block)
        self.entropy = 0
        self.pool, self.allotted = self.pool - budget, self.allotted + budget
        for at, member in enumerate(members):
            who = to_checksum_address(member)
            voter = at >= self.terms.proposers
            seat = Seat(who, voter, Duty.DRAWN, NOTHING, NOTHING, 0, (), Verdict.NONE, 0, False)
            self.seats[number].append(seat)
            self.people[who].unsettled += 1
            self.people[who].last_round = number

    def PhaseEntered(self, number: int, phase: int, deadline: int) -> None:
        """One phase ended, another began."""
        self._count_missed(Phase(phase))
        self.round, self.phase, self.deadline = number, Phase(phase), deadline
        self.since = self.now

    def _count_missed(self, following: Phase) -> None:
        voters = {Phase.TRAIN: False, Phase.EVALUATE: True}.get(self.phase)
        for seat in self.seats[self.round]:
            if seat.voter == voters and seat.duty == Duty.DRAWN and following != self.phase:
                self.people[seat.who].missed += 1

    def UpdateCommitted(self, number: int, who: str, commitment: bytes) -> None:
        """A proposer has trained."""
        self._seat(number, who, duty=Duty.COMMITTED, commitment=commitment)
        self.people[who].missed = 0

    def Abstained(self, number: int, who: str) -> None:
        """A proposer has nothing."""
        self._seat(number, who, duty=Duty.ABSTAINED)
        self.people[who].missed = 0

    def UpdatePublished(self, number: int, who: str, digest: bytes, size: int, salt: bytes) -> None:
        """An update is in the store."""
        self._seat(number, who, duty=Duty.DONE, digest=digest, size=size)
        self.entropy ^= int.from_bytes(salt)

    def VoteCommitted(self, number: int, who: str, commitment: bytes) -> None:
        """A voter has scored."""
        self._seat(number, who, duty=Duty.COMMITTED, commitment=commitment)
        self.people[who].missed = 0

    def VoteRevealed(self, number: int, who: str, scores: int, salt: bytes) -> None:
        """A voter has shown its scores."""
        unpacked = rounds.unpack_scores(scores, self.terms.proposers)
        self._seat(number, who, duty=Duty.DONE, scores=unpacked)
        self.entropy ^= int.from_bytes(salt)

    def UpdateJudged(self, number: int, who: str, verdict: int, weight: int) -> None:
        """The tally's word on one update."""
        self._seat(number, who, verdict=Verdict(verdict), weight=weight)

    def Attested(self, number: int, who: str, digest: bytes) -> None:
        """A voter has aggregated."""
        self._seat(number, who, digest=digest)

    def RoundClosed(self, number: int, outcome: int, adapter: bytes, returned: int) -> None:
        """A round's result."""
        assert number == self.round
        self.outcomes[number] = Outcome(outcome)
        self.adapter = adapter
        self.allotted, self.pool = self.allotted - returned, self.pool + returned

    def SeatSettled(
        self,
        number: int,
        who: str,
        keeper: str,
        paid: int,
        slashed: int,
        keeper_paid: int,
        returned: int,
    ) -> None:
        """A seat's money."""
        self._seat(number, who, settled=True)
        person = self.people[who]
        person.unsettled -= 1
        person.stake -= slashed
        person.claimable += paid
        self.people[keeper].claimable += keeper_paid
        self.pool += returned
        self.allotted -= paid + returned + keeper_paid - slashed
        if slashed and person.stake < self.terms.bond:
            self._drop(who)

    def Cancelled(self, number: int) -> None:
        """The creator gave up; PhaseEntered follows."""
        assert number == self.round

    def RestWithdrawn(self, amount: int) -> None:
        """The pool is the creator's."""
        assert self.pool == amount
        self.pool = 0
        self.people[self.creator].claimable += amount
