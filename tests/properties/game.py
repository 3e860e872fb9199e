"""The contract and its model side by side: every call goes to both, then both must say the same.

Who calls what comes from a random source that the caller brings: hypothesis shrinks it, the long
campaign seeds it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random

from eth_hash.auto import keccak

from flockllm import rounds
from flockllm.rounds import Duty, Outcome, Phase, Seat, Terms, View
from flockllm.simulate import evm
from flockllm.simulate.evm import CHAIN_ID, INITIAL, Chain, address
from tests.properties.model import Model, Refused
from tests.properties.replay import Replay

Call = tuple[str, str, tuple]
"""Caller, function, arguments."""

CREATOR = address(1_000)
KEEPER = address(1_001)


class Game:
    """One task, played by at most `crowd` people."""

    def __init__(
        self,
        terms: Terms,
        pool: int,
        crowd: int,
        *,
        blueprint: bytes | None = None,
    ) -> None:
        self.chain = Chain(terms, CREATOR, pool, blueprint=blueprint)
        self.model = Model(
            terms=terms,
            address=self.chain.task,
            chain_id=CHAIN_ID,
            creator=CREATOR,
            adapter=INITIAL,
            pool=pool,
            block_hash=self.chain.block_hash,
            now=self.chain.now,
            block=self.chain.block,
        )
        self.replay = Replay(terms, CREATOR, INITIAL, pool, self.chain.now)
        self.terms = terms
        self.people = [address(i) for i in range(crowd)]
        self.everyone = [*self.people, CREATOR, KEEPER]
        for who in self.everyone:
            self.chain.endow(who)
        self.opened: dict[tuple[int, str], tuple[bytes, bytes]] = {}
        """What a seat committed to: content and salt, by round and seat."""
        self.counts: Counter[str] = Counter()
        """Calls made, by function and whether they were refused."""

    # one step

    def call(self, who: str, name: str, *args: object) -> str | None:
        """Makes a call on both sides and compares; returns why it was refused."""
        told = said = None
        try:
            getattr(self.model, name)(who, *args)
        except Refused as e:
            told = str(e)
        try:
            self.chain.call(who, name, *args)
        except evm.Refused as e:
            said = str(e)
        self.counts.update(["calls", f"{'refused' if told else 'done'}:{name}"])
        self.counts["refused"] += told is not None
        assert said == told, f"{name}{args} of {who}: contract {said!r}, model {told!r}"
        if said is None:
            for event, values in self.chain.events():
                self.replay.read(self.chain.now, event, values)
        self.compare(who)
        return told

    def wait(self, seconds: int = 0, blocks: int = 0) -> None:
        """Lets time pass for both."""
        self.chain.wait(seconds, blocks)
        self.model.now, self.model.block = self.chain.now, self.chain.block

    # comparing

    def compare(self, who: str) -> None:
        """What `who` sees is byte for byte what the model sees, and no token is unaccounted for."""
        assert self.look(who) == encoded(self.model.view(who))
        model = self.model
        held = sum(person.stake + person.claimable for person in model.people.values())
        assert model.balance == held + model.pool + model.allotted  # I1
        assert self.chain.balance() == model.balance

    def look(self, who: str) -> bytes:
        """The raw result of `look`."""
        return self.chain.raw("look", who)

    def compare_all(self) -> None:
        """Everything that can be read is equal."""
        model, chain = self.model, self.chain
        for who in self.everyone:
            self.compare(who)
            assert self.replay.view(who) == model.view(who)  # events tell all of it
        assert self.replay.active == model.active
        assert self.replay.entropy == model.entropy
        for index, who in enumerate(model.active):
            assert evm.to_checksum_address(chain.call(who, "active_member", index)[0]) == who
        assert chain.call(CREATOR, "entropy") == (model.entropy,)
        assert chain.call(CREATOR, "pool") == (model.pool,)
        assert chain.call(CREATOR, "allotted") == (model.allotted,)
        for number, played in model.played.items():
            assert chain.result(number) == played.result()
            assert played.seats == self.replay.seats[number]
            assert chain.raw("seats", number) == encoded_list(played.seats)
            assert self.replay.outcomes.get(number, Outcome.OPEN) == played.outcome
            self.check_round(number)

    def check_round(self, number: int) -> None:
        """I2, I3, I4: what a round pays and takes is bounded, and nobody sits twice."""
        played, terms = self.model.played[number], self.terms
        assert len({seat.who for seat in played.seats}) == terms.committee
        if played.outcome != Outcome.OPEN:
            dues = [
                rounds.settlement(terms, played.result(), played.seats, at)
                for at in range(terms.committee)
            ]
            assert sum(due.paid for due in dues) <= played.budget
            assert all(due.slashed <= terms.bond for due in dues)
            assert all(not (due.paid and due.slashed) for due in dues)

    # choosing

    def obey(self, rnd: Random) -> None:
        """Makes a call that the rules allow now, if there is one."""
        moves = list(self.forward(rnd))
        rest = list(self.sideways(rnd))
        if not rest or (moves and rnd.random() < 0.75):
            rest = moves
        if rest:
            who, name, args = rnd.choice(rest)
            refused = self.call(who, name, *args)
            assert refused is None, f"{name}{args} of {who} should work: {refused!r}"

    def forward(self, rnd: Random) -> Iterator[Call]:
        """What moves the round on."""
        model, number = self.model, self.model.round
        anyone = rnd.choice(self.everyone)
        late = model.deadline and model.now >= model.deadline
        if late:
            yield anyone, "advance", ()
            return
        match model.phase:
            case Phase.IDLE if len(model.active) >= self.terms.committee:
                yield anyone, "open_round", ()
            case Phase.DRAW if model.block > model.draw_block + 256:
                yield anyone, "advance", ()
            case Phase.DRAW:
                self.wait(blocks=max(0, model.draw_block + 1 - model.block))
                yield anyone, "draw", ()
            case Phase.TALLY:
                yield anyone, "tally", (rnd.choice([1, 1, 2, 16]),)
        for at, seat in enumerate(model.seats):
            match model.phase, seat.voter, seat.duty:
                case Phase.TRAIN, False, Duty.DRAWN:
                    yield self.commit_update(rnd, seat.who)
                    if rnd.random() < 0.2:
                        yield seat.who, "abstain", (number,)
                case Phase.PUBLISH, False, Duty.COMMITTED:
                    digest, salt = self.opened[number, seat.who]
                    if digest not in model.seen and any(digest):
                        size = rnd.choice([0, 1000 + at, 2**48 - 1])
                        yield seat.who, "publish_update", (number, digest, size, salt)
                case Phase.EVALUATE, True, Duty.DRAWN:
                    yield self.commit_vote(rnd, seat.who)
                case Phase.REVEAL, True, Duty.COMMITTED:
                    content, salt = self.opened[number, seat.who]
                    scores = int.from_bytes(content)
                    yield seat.who, "reveal_vote", (number, scores, salt)
                case Phase.ATTEST, True, Duty.DONE if not any(seat.digest):
                    yield seat.who, "attest", (number, self.digest(rnd))

    def sideways(self, rnd: Random) -> Iterator[Call]:
        """What is allowed beside the round's way."""
        model, bond = self.model, self.terms.bond
        who = rnd.choice(self.people)
        person = model.people[who]
        if model.phase != Phase.DRAW:
            for number, played in model.played.items():
                if number < model.round and (open_ := [s for s in played.seats if not s.settled]):
                    whose = rnd.choice(open_).who
                    yield rnd.choice([whose, KEEPER, CREATOR]), "settle", (number, whose)
            if not person.registered and model.phase < Phase.FINISHED:
                yield who, "register", (bond + rnd.choice([0, 0, 1, bond]),)
            if person.registered:
                yield who, "top_up", (max(1, bond - person.stake + rnd.choice([-1, 0, 1])),)
                if not person.unsettled and rnd.random() < 0.1:
                    yield who, "exit", ()
            if person.missed == 3 and person.stake >= bond:
                yield who, "reactivate", ()
        if person.claimable:
            yield who, "claim", ()
        if model.phase < Phase.FINISHED and rnd.random() < 0.2:
            yield rnd.choice(self.everyone), "fund", (rnd.choice([1, 10_000, 12_345_678]),)
        elif model.phase >= Phase.FINISHED and model.pool:
            yield CREATOR, "withdraw_rest", ()
        elif (
            model.phase == Phase.IDLE
            and len(model.active) < self.terms.committee
            and model.now >= model.since + self.terms.idle_timeout
            and rnd.random() < 0.3
        ):
            yield CREATOR, "cancel", ()

    def defy(self, rnd: Random) -> None:
        """Makes any call with arguments that are plausible somewhere; most are refused."""
        model = self.model
        number = max(0, model.round + rnd.choice([-1, 0, 0, 0, 0, 1]))
        who = rnd.choice([seat.who for seat in model.seats] * 2 + self.everyone)
        content, salt = self.opened.get((number, who)) or self.some_opening(rnd)
        if rnd.random() < 0.1:
            salt = keccak(salt)
        if model.phase == Phase.EVALUATE:  # the model forgets lanes that nobody reads
            content = rounds.word(int.from_bytes(content) % 2 ** (16 * self.terms.proposers))
        amount = rnd.choice([0, 1, self.terms.bond - 1, self.terms.bond, self.terms.bond + 1])
        name, args = rnd.choice(
            [
                ("register", (amount,)),
                ("top_up", (amount,)),
                ("reactivate", ()),
                ("exit", ()),
                ("claim", ()),
                ("fund", (amount,)),
                ("open_round", ()),
                ("draw", ()),
                ("advance", ()),
                ("tally", (rnd.choice([0, 1, 2]),)),
                ("settle", (rnd.randint(0, model.round), rnd.choice(self.everyone))),
                ("commit_update", (number, self.commitment(who, content, salt))),
                ("abstain", (number,)),
                (
                    "publish_update",
                    (number, rnd.choice([content, bytes(32)]), rnd.choice([7, 2**48]), salt),
                ),
                ("commit_vote", (number, self.commitment(who, content, salt))),
                ("reveal_vote", (number, int.from_bytes(content), salt)),
                ("attest", (number, rnd.choice([self.digest(rnd), bytes(32)]))),
                ("cancel", ()),
                ("withdraw_rest", ()),
            ]
        )
        if name in ("cancel", "withdraw_rest") and rnd.random() < 0.5:
            who = CREATOR
        if self.call(who, name, *args) is None and name in ("commit_update", "commit_vote"):
            self.opened[number, who] = content, salt

    def hurry(self, rnd: Random) -> None:
        """Waits to one second before the next deadline, to it, or a little."""
        model = self.model
        edge = model.deadline or model.since + self.terms.idle_timeout
        if model.phase == Phase.DRAW:
            self.wait(blocks=rnd.choice([1, 2, max(1, model.draw_block + 256 - model.block), 257]))
        elif edge > model.now:
            self.wait(rnd.choice([edge - model.now, edge - model.now - 1, 1]), blocks=1)
        else:
            self.wait(1, blocks=1)

    # arguments

    def commitment(self, who: str, content: bytes, salt: bytes) -> bytes:
        """Binds `content` to `who` in the running round."""
        return rounds.commitment(CHAIN_ID, self.chain.task, self.model.round, who, content, salt)

    def some_opening(self, rnd: Random) -> tuple[bytes, bytes]:
        """Somebody's content and salt."""
        return rnd.choice([*self.opened.values(), (bytes(32), bytes(32))])

    def commit_update(self, rnd: Random, who: str) -> Call:
        """A commitment, sometimes to an update seen before."""
        number = self.model.round
        digest = keccak(f"update {who} {number}".encode())
        if self.model.seen and rnd.random() < 0.05:
            digest = sorted(self.model.seen)[0]
        salt = keccak(b"salt" + digest)
        self.opened[number, who] = digest, salt
        return who, "commit_update", (number, self.commitment(who, digest, salt))

    def commit_vote(self, rnd: Random, who: str) -> Call:
        """A commitment to scores around the margins; voters mostly agree."""
        terms, number = self.terms, self.model.round
        moods = Random(f"{number} {self.chain.now // 7}").choices(
            [
                [terms.accept_margin, terms.strong_margin, terms.score_cap, terms.score_cap + 1],
                [-terms.strong_margin, -terms.strong_margin - 1, -32_767, rounds.INVALID],
                [rounds.INVALID],
                [terms.accept_margin - 1, 0, -1, 1 - terms.strong_margin],
                [terms.accept_margin, terms.accept_margin - 1, terms.strong_margin - 1],
            ],
            k=terms.proposers,
        )
        anything = [mood for choices in moods for mood in choices]
        scores = [
            rnd.choice(mood) if rnd.random() < 0.85 else rnd.choice(anything) for mood in moods
        ]
        content = rounds.word(rounds.pack_scores(scores))
        salt = keccak(f"vote {who} {number}".encode())
        self.opened[number, who] = content, salt
        return who, "commit_vote", (number, self.commitment(who, content, salt))

    def digest(self, rnd: Random) -> bytes:
        """What a voter may attest: mostly the aggregate, or the current adapter, or nonsense."""
        aggregate = keccak(f"aggregate {self.model.round}".encode())
        return rnd.choice([aggregate] * 6 + [self.model.adapter] * 2 + [keccak(b"nonsense")])


def encoded(view: View) -> bytes:
    """A view as the ABI has it."""
    state, me = view.state, view.me
    words = [
        *(state.round, state.phase, state.since, state.deadline, state.draw_block),
        int.from_bytes(state.adapter),
        *(state.pool, state.allotted, state.active),
        32 * 18,  # where the seats are: after State, this word and Participant
        *(me.registered, me.stake, me.deposited, me.claimable, me.index),
        *(me.missed, me.unsettled, me.last_round),
    ]
    return b"".join(map(rounds.word, words)) + encoded_list(view.seats)[32:]


def encoded_list(seats: Sequence[Seat]) -> bytes:
    """Seats as the ABI has them: where the list is, its length, its items."""
    return b"".join([rounds.word(32), rounds.word(len(seats)), *map(encoded_seat, seats)])


@lru_cache(maxsize=1 << 16)
def encoded_seat(seat: Seat) -> bytes:
    """A seat as the ABI has it."""
    words = [
        *(int(seat.who, 16), seat.voter, seat.duty),
        *(int.from_bytes(seat.commitment), int.from_bytes(seat.digest), seat.size),
        *(rounds.pack_scores(seat.scores), seat.verdict, seat.weight, seat.settled),
    ]
    return b"".join(map(rounds.word, words))
