"""Plays rounds on the contract: what honest people do, so that a test says what differs."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple
from functools import cache
from pathlib import Path

import boa
from eth_hash.auto import keccak

from flockllm import rounds
from flockllm.rounds import Duty, Outcome, Phase, Terms
from flockllm.simulate.evm import to_seat, to_view

CONTRACTS = Path(
    os.environ.get("FLOCKLLM_CONTRACTS", Path(__file__).resolve().parents[2] / "contracts")
)
POOL = 1_000 * 10**18
SPEC = keccak(b"spec")
INITIAL = keccak(b"initial adapter")
AGGREGATE = keccak(b"aggregate")
TERMS = Terms(
    rounds=4,
    proposers=2,
    voters=3,
    train_seconds=100,
    publish_seconds=50,
    evaluate_seconds=80,
    reveal_seconds=40,
    attest_seconds=60,
    idle_timeout=1_000,
)
CREATOR = boa.env.generate_address("creator")
KEEPER = boa.env.generate_address("keeper")
STRANGER = boa.env.generate_address("stranger")
PEOPLE = [boa.env.generate_address(f"participant {i}") for i in range(1, 101)]


@cache
def source(name: str):
    """A compiled contract."""
    return boa.load_partial(str(CONTRACTS / f"{name}.vy"))


@cache
def factory():
    """One factory for all tests; `boa.env.anchor` undoes what they do to it."""
    return source("TaskFactory").deploy(source("Task").deploy_as_blueprint())


@cache
def plain_token():
    """The token that tests use unless they are about tokens."""
    return source("TestToken").deploy("Test", "TST")


class Play:
    """A task with `people` registered, and the moves of a round."""

    def __init__(
        self, terms: Terms = TERMS, people: int | None = None, pool: int = POOL, token=None
    ) -> None:
        self.terms = terms
        self.token = token or plain_token()
        self.token.mint(CREATOR, pool)
        self.token.approve(factory(), pool, sender=CREATOR)
        address = factory().create_task(
            astuple(terms), self.token, SPEC, INITIAL, pool, sender=CREATOR
        )
        self.task = source("Task").at(address)
        self.people: list[str] = []
        for who in PEOPLE[: terms.committee if people is None else people]:
            self.register(who)

    # looking

    def view(self, who: str = STRANGER) -> rounds.View:
        """What a node sees, as the model's values."""
        return to_view(self.task.look(who), self.terms)

    def seats(self, number: int) -> tuple[rounds.Seat, ...]:
        """The seats of a round."""
        return tuple(to_seat(seat, self.terms) for seat in self.task.seats(number))

    def result(self, number: int) -> rounds.RoundResult:
        """How a round ended."""
        outcome, *rest = self.task.round_result(number)
        return rounds.RoundResult(Outcome(outcome), *rest)

    @property
    def state(self) -> rounds.State:
        """The task as it stands."""
        return self.view().state

    @property
    def phase(self) -> Phase:
        """The phase the task is in."""
        return self.state.phase

    @property
    def round(self) -> int:
        """The running round."""
        return self.state.round

    @property
    def proposers(self) -> list[str]:
        """Who has the running round's proposer seats."""
        return [seat.who for seat in self.view().seats if not seat.voter]

    @property
    def voters(self) -> list[str]:
        """Who has the running round's voter seats."""
        return [seat.who for seat in self.view().seats if seat.voter]

    def stake(self, who: str) -> int:
        """What `who` has at stake."""
        return self.view(who).me.stake

    def claimable(self, who: str) -> int:
        """What `who` may claim."""
        return self.view(who).me.claimable

    # people

    def give(self, who: str, amount: int) -> None:
        """Lets `who` have `amount` tokens that the task may take."""
        self.token.mint(who, amount)
        self.token.approve(self.task, 2**256 - 1, sender=who)

    def register(self, who: str, amount: int | None = None) -> None:
        """Registers `who` with the bond."""
        amount = self.terms.bond if amount is None else amount
        self.give(who, amount)
        self.task.register(amount, sender=who)
        self.people.append(str(who))

    # secrets, as a function of who and when

    def salt(self, who: str, number: int | None = None) -> bytes:
        """What hides `who`'s commitment."""
        return keccak(f"{who} {number or self.round}".encode())

    def update(self, who: str, number: int | None = None) -> bytes:
        """The digest of `who`'s update."""
        return keccak(f"update of {who} in {number or self.round}".encode())

    def commitment(self, who: str, content: bytes) -> bytes:
        """`who`'s commitment in the running round."""
        return rounds.commitment(
            boa.env.evm.patch.chain_id,
            self.task.address,
            self.round,
            who,
            content,
            self.salt(who),
        )

    # single moves

    def commit_update(self, who: str) -> None:
        """Commits to `who`'s update."""
        commitment = self.commitment(who, self.update(who))
        self.task.commit_update(self.round, commitment, sender=who)

    def publish_update(self, who: str) -> None:
        """Publishes `who`'s update."""
        self.task.publish_update(self.round, self.update(who), 1234, self.salt(who), sender=who)

    def commit_vote(self, who: str, scores: Sequence[int]) -> None:
        """Commits to scores."""
        content = rounds.word(rounds.pack_scores(scores))
        self.task.commit_vote(self.round, self.commitment(who, content), sender=who)

    def reveal_vote(self, who: str, scores: Sequence[int]) -> None:
        """Reveals scores."""
        self.task.reveal_vote(self.round, rounds.pack_scores(scores), self.salt(who), sender=who)

    # whole phases: everyone but `without` acts; if someone is missing, time ends the phase

    def open(self) -> None:
        """Opens a round and draws its committee."""
        self.task.open_round()
        boa.env.time_travel(blocks=2, block_delta=1)
        self.task.draw()

    def train(self, without: Collection[str] = (), abstain: Collection[str] = ()) -> None:
        """TRAIN: commits."""
        for who in self.proposers:
            if who in abstain:
                self.task.abstain(self.round, sender=who)
            elif who not in without:
                self.commit_update(who)
        self.expire(Phase.TRAIN)

    def publish(self, without: Collection[str] = ()) -> None:
        """PUBLISH: all that committed."""
        for seat in self.view().seats:
            if seat.duty == Duty.COMMITTED and seat.who not in without:
                self.publish_update(seat.who)
        self.expire(Phase.PUBLISH)

    def vote(self, scores: Callable[[str], Sequence[int]], without: Collection[str] = ()) -> None:
        """EVALUATE."""
        for who in self.voters:
            if who not in without:
                self.commit_vote(who, scores(who))
        self.expire(Phase.EVALUATE)

    def reveal(self, scores: Callable[[str], Sequence[int]], without: Collection[str] = ()) -> None:
        """REVEAL: all that committed."""
        for seat in self.view().seats:
            if seat.voter and seat.duty == Duty.COMMITTED and seat.who not in without:
                self.reveal_vote(seat.who, scores(seat.who))
        self.expire(Phase.REVEAL)

    def attest(
        self, digest: Callable[[str], bytes] | bytes = AGGREGATE, without: Collection[str] = ()
    ) -> None:
        """ATTEST: all that revealed, until the round closes."""
        for seat in self.view().seats:
            if seat.voter and seat.duty == Duty.DONE and seat.who not in without:
                if self.phase != Phase.ATTEST:
                    return
                said = digest(seat.who) if callable(digest) else digest
                self.task.attest(self.round, said, sender=seat.who)
        self.expire(Phase.ATTEST)

    def good(self, _who: str) -> list[int]:
        """Scores of a voter that likes every update."""
        return [50] * self.terms.proposers

    def until(self, phase: Phase, scores: Callable[[str], Sequence[int]] | None = None) -> "Play":
        """Plays a round honestly up to the beginning of `phase`; IDLE: to its end."""
        scores = scores or self.good
        steps = [
            (Phase.TRAIN, self.open),
            (Phase.PUBLISH, self.train),
            (Phase.EVALUATE, self.publish),
            (Phase.REVEAL, lambda: self.vote(scores)),
            (Phase.TALLY, lambda: self.reveal(scores)),
            (Phase.ATTEST, lambda: self.task.tally(self.terms.proposers)),
            (Phase.IDLE, self.attest),
        ]
        for reached, step in steps:
            step()
            if reached == phase:
                break
        return self

    def expire(self, phase: Phase) -> None:
        """If `phase` still runs, waits for its deadline and pushes the round on."""
        if self.phase == phase:
            boa.env.time_travel(seconds=self.state.deadline - boa.env.timestamp)
            self.task.advance()

    def settle(self, number: int, keeper: str = KEEPER) -> None:
        """Settles every seat of a closed round that is not settled."""
        for seat in self.seats(number):
            if not seat.settled:
                self.task.settle(number, seat.who, sender=keeper)

    # invariants

    def assert_money_adds_up(self) -> None:
        """I1: every token of the task is in exactly one place."""
        holders = {*self.people, CREATOR, KEEPER, STRANGER}
        mine = [self.view(who).me for who in holders]
        held = sum(me.stake + me.claimable for me in mine)
        assert self.token.balanceOf(self.task) == held + self.task.pool() + self.task.allotted()
