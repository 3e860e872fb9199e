"""What honesty and its alternatives earn, played on the real contract.

    python -m flockllm.simulate.economics --rounds 200

Updates have a true quality, voters measure it with noise; everything else (draws, verdicts,
pay, slashes) is what `Task` does, on revm. Strategies are functions in two dictionaries. A stake
below the bond is topped up, a retired participant returns: everybody keeps playing.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from eth_hash.auto import keccak

from flockllm import rounds
from flockllm.rounds import Duty, Outcome, Phase, Terms, Verdict
from flockllm.simulate.evm import CHAIN_ID, Chain, address

TERMS = Terms()
NOISE = 15.0
"""Standard deviation of a voter's measurement, in score units; M is 100."""
SALT = b"\1" * 32


@dataclass(frozen=True)
class Update:
    """What a proposer publishes: what it does to the loss, and how much held-out sets differ."""

    quality: float
    noise: float = NOISE


@dataclass
class Voting:
    """What a voter may look at before it scores."""

    random: Random
    measured: list[int]
    """Its own measurements, one per item, INVALID where nothing was published."""
    accomplices: list[bool]
    """Which items are a fellow strategist's."""
    before: list[int]
    """Last round's mean revealed scores: what a copier has."""


Train = Callable[[Random], Update | None]
Vote = Callable[[Voting], list[int] | None]


def honest_train(random: Random) -> Update | None:
    """Mostly an improvement; abstains when its own held-out split says otherwise."""
    quality = random.gauss(60, 30)
    seen = quality + random.gauss(0, NOISE)
    return Update(quality) if seen >= TERMS.accept_margin else None


TRAIN: dict[str, Train] = {
    "honest": honest_train,
    "zero update": lambda random: Update(0, 1.5),
    "sign flip": lambda random: Update(random.gauss(-120, 30)),
    "small IPM": lambda random: Update(random.gauss(-8, 4), 4.0),
}
"""How updates are made; IPM: a small step against the mean, inside the margins."""

VOTE: dict[str, Vote] = {
    "honest": lambda seen: seen.measured,
    "always accept": lambda seen: [50] * len(seen.measured),
    "random": lambda seen: [seen.random.randint(-150, 150) for _ in seen.measured],
    "copy last round": lambda seen: seen.before,
    "no reveal": lambda seen: None,
    "cabal": lambda seen: [
        TERMS.score_cap if ours else -TERMS.score_cap for ours in seen.accomplices
    ],
}
"""How votes are made; None: committed, never revealed."""


@dataclass(frozen=True)
class Strategy:
    """A way to play both roles, and how many of the crowd play it."""

    name: str
    share: float
    train: str = "honest"
    vote: str = "honest"
    absent: bool = False
    """Never does anything when drawn."""
    role: str = "voter"
    """In which seats it departs from honesty; `both` for a cabal."""


STRATEGIES = [
    Strategy("honest", 0.2, role="both"),
    Strategy("always accept", 0.2, vote="always accept"),
    Strategy("random votes", 0.2, vote="random"),
    Strategy("copy last round", 0.2, vote="copy last round"),
    Strategy("no reveal", 0.2, vote="no reveal"),
    Strategy("no show", 0.2, absent=True, role="both"),
    Strategy("zero update", 0.2, train="zero update", role="proposer"),
    Strategy("sign flip", 0.2, train="sign flip", role="proposer"),
    Strategy("small IPM", 0.2, train="small IPM", role="proposer"),
    Strategy("cabal 20 %", 0.20, train="sign flip", vote="cabal", role="both"),
    Strategy("cabal 33 %", 0.33, train="sign flip", vote="cabal", role="both"),
    Strategy("cabal 45 %", 0.45, train="sign flip", vote="cabal", role="both"),
]


@dataclass
class Ledger:
    """What was counted in one scenario."""

    returns: dict[tuple[bool, bool], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Gain in % of the bond of each settled seat, by (strategist, voter)."""
    honest_slashed: int = 0
    good: list[bool] = field(default_factory=list)
    """Of honest published updates of at least the margin: whether accepted."""
    poison: list[bool] = field(default_factory=list)
    """Of the strategists' harmful updates: whether accepted."""
    adopted: int = 0

    def mean(self, strategist: bool, role: str) -> float | None:
        """Mean return of the seats of a role."""
        kinds = {"voter": [True], "proposer": [False], "both": [True, False]}[role]
        gains = [gain for voter in kinds for gain in self.returns[strategist, voter]]
        return sum(gains) / len(gains) if gains else None


class Scenario:
    """A crowd in which some follow `strategy`, playing one task."""

    def __init__(self, strategy: Strategy, terms: Terms, crowd: int, seed: int) -> None:
        self.random = Random(f"{strategy.name} {seed}")
        self.strategy, self.terms = strategy, terms
        self.people = [address(i) for i in range(crowd)]
        self.strategists = set(self.people[: round(crowd * strategy.share)])
        creator, self.keeper = address(10**6), address(10**6 + 1)
        self.chain = Chain(terms, creator, 10 * terms.bond * terms.rounds)
        for who in self.people:
            self.chain.endow(who)
            self.chain.call(who, "register", terms.bond)
        self.before = [0] * terms.proposers
        self.ledger = Ledger()

    def play(self) -> Ledger:
        """All rounds of the task."""
        for number in range(1, self.terms.rounds + 1):
            self.round(number)
            self.come_back()
        return self.ledger

    def departs(self, who: str, role: str) -> bool:
        """Whether `who` plays its strategy in this role, and not honestly."""
        return who in self.strategists and self.strategy.role in (role, "both")

    def end(self, phase: Phase) -> None:
        """Whoever is missing: waits for the deadline."""
        state = self.chain.view(self.keeper).state
        if state.phase == phase:
            self.chain.wait(state.deadline - self.chain.now)
            self.chain.call(self.keeper, "advance")

    def round(self, number: int) -> None:
        """One round."""
        chain = self.chain
        chain.call(self.keeper, "open_round")
        chain.wait(12, blocks=2)
        chain.call(self.keeper, "draw")
        seats = [seat.who for seat in chain.seats(number)]
        proposers, voters = seats[: self.terms.proposers], seats[self.terms.proposers :]
        updates = self.train(number, proposers)
        if updates:
            revealed = self.vote(number, proposers, voters, updates)
            if chain.view(self.keeper).state.phase == Phase.TALLY:
                chain.call(self.keeper, "tally", self.terms.proposers)
                self.attest(number, proposers, revealed, updates)
                self.remember(number)
        self.settle(number, proposers, updates)

    def train(self, number: int, proposers: Sequence[str]) -> dict[str, Update]:
        """TRAIN and PUBLISH; the updates that were published."""
        updates: dict[str, Update] = {}
        for who in proposers:
            departs = self.departs(who, "proposer")
            if departs and self.strategy.absent:
                continue
            made = TRAIN[self.strategy.train if departs else "honest"](self.random)
            if made is None:
                self.chain.call(who, "abstain", number)
            else:
                updates[who] = made
                digest = self.digest(who, number)
                self.chain.call(who, "commit_update", number, self.bind(who, number, digest))
        self.end(Phase.TRAIN)
        for who in updates:
            self.chain.call(who, "publish_update", number, self.digest(who, number), 1, SALT)
        self.end(Phase.PUBLISH)
        return updates

    def vote(
        self,
        number: int,
        proposers: Sequence[str],
        voters: Sequence[str],
        updates: dict[str, Update],
    ) -> list[str]:
        """EVALUATE and REVEAL; who revealed."""
        chain, ballots = self.chain, dict(self.ballots(proposers, voters, updates))
        for who, packed in ballots.items():
            content = rounds.word(packed if packed is not None else 0)
            chain.call(who, "commit_vote", number, self.bind(who, number, content))
        self.end(Phase.EVALUATE)
        revealed = []
        if chain.view(self.keeper).state.phase == Phase.REVEAL:
            for who, packed in ballots.items():
                if packed is not None:
                    chain.call(who, "reveal_vote", number, packed, SALT)
                    revealed.append(who)
            self.end(Phase.REVEAL)
        return revealed

    def ballots(
        self, proposers: Sequence[str], voters: Sequence[str], updates: dict[str, Update]
    ) -> Iterator[tuple[str, int | None]]:
        """What each voter commits to; None for scores that it will hide."""
        for who in voters:
            departs = self.departs(who, "voter")
            if departs and self.strategy.absent:
                continue
            seen = Voting(
                random=self.random,
                measured=[self.measure(updates.get(proposer)) for proposer in proposers],
                accomplices=[proposer in self.strategists for proposer in proposers],
                before=self.before,
            )
            scores = VOTE[self.strategy.vote if departs else "honest"](seen)
            yield who, None if scores is None else rounds.pack_scores(scores)

    def measure(self, update: Update | None) -> int:
        """A voter's score of an update on its own held-out data."""
        if update is None:
            return rounds.INVALID
        return round(update.quality + self.random.gauss(0, update.noise))

    def attest(
        self,
        number: int,
        proposers: Sequence[str],
        revealed: Sequence[str],
        updates: dict[str, Update],
    ) -> None:
        """Honest voters attest the aggregate if it is an improvement; a cabal its own adapter."""
        seats = self.chain.seats(number)
        accepted = [seat.who for seat in seats if seat.verdict == Verdict.ACCEPTED]
        better = sum(updates[who].quality for who in accepted) > 0
        state = self.chain.view(self.keeper).state
        aggregate = keccak(f"aggregate {number}".encode()) if better else state.adapter
        for who in revealed:
            if self.chain.view(self.keeper).state.phase != Phase.ATTEST:
                return
            cabal = self.departs(who, "voter") and self.strategy.vote == "cabal"
            said = keccak(f"evil {number}".encode()) if cabal else aggregate
            self.chain.call(who, "attest", number, said)
        self.end(Phase.ATTEST)

    def remember(self, number: int) -> None:
        """What a copier will say next time."""
        shown = [seat.scores for seat in rounds.revealed(self.chain.seats(number))]
        means = [round(sum(items) / len(shown)) for items in zip(*shown, strict=True)]
        self.before = [max(-100, mean) for mean in means]

    def settle(self, number: int, proposers: Sequence[str], updates: dict[str, Update]) -> None:
        """Settles and counts."""
        ledger, bond = self.ledger, self.terms.bond
        for seat in self.chain.seats(number):
            held = self.chain.view(seat.who).me
            self.chain.call(self.keeper, "settle", number, seat.who)
            now = self.chain.view(seat.who).me
            gain = now.stake + now.claimable - held.stake - held.claimable
            mine = seat.who in self.strategists
            ledger.returns[mine, seat.voter].append(100 * gain / bond)
            ledger.honest_slashed += gain < 0 and not mine
            if (made := updates.get(seat.who)) and not seat.voter and seat.duty == Duty.DONE:
                departs = self.departs(seat.who, "proposer") and self.strategy.train != "honest"
                if departs and made.quality < 0:
                    ledger.poison.append(seat.verdict == Verdict.ACCEPTED)
                elif not departs and made.quality >= self.terms.accept_margin:
                    ledger.good.append(seat.verdict == Verdict.ACCEPTED)
        ledger.adopted += self.chain.result(number).outcome == Outcome.ADOPTED

    def come_back(self) -> None:
        """Bonds are completed, the retired return."""
        for who in self.people:
            me = self.chain.view(who).me
            if me.stake < self.terms.bond:
                self.chain.call(who, "top_up", self.terms.bond - me.stake)
            if me.missed == 3:
                self.chain.call(who, "reactivate")

    def digest(self, who: str, number: int) -> bytes:
        """An update's digest."""
        return keccak(f"update {who} {number}".encode())

    def bind(self, who: str, number: int, content: bytes) -> bytes:
        """A commitment."""
        return rounds.commitment(CHAIN_ID, self.chain.task, number, who, content, SALT)


def table(number: int, crowd: int, seed: int) -> Iterator[str]:
    """The strategies side by side, as Markdown, a line at a time."""
    yield (
        "| strategy (share) | seats | its return | honest return there | honest seats slashed "
        "| poison accepted | good accepted | rounds adopted |"
    )
    yield "|---" * 8 + "|"
    for strategy in STRATEGIES:
        terms = replace(TERMS, rounds=number)
        ledger = Scenario(strategy, terms, crowd, seed).play()
        honest = len(ledger.returns[False, True]) + len(ledger.returns[False, False])
        yield " | ".join(
            [
                f"| {strategy.name} ({strategy.share:.0%})",
                strategy.role,
                percent(ledger.mean(True, strategy.role)),
                percent(ledger.mean(False, strategy.role)),
                f"{100 * ledger.honest_slashed / honest:.2f} %",
                rate(ledger.poison),
                rate(ledger.good),
                f"{100 * ledger.adopted / number:.0f} % |",
            ]
        )


def percent(value: float | None) -> str:
    """In % of the bond, or a dash."""
    return "–" if value is None else f"{value:+.1f} %"


def rate(outcomes: Sequence[bool]) -> str:
    """How many of them, or a dash."""
    return f"{100 * sum(outcomes) / len(outcomes):.1f} %" if outcomes else "–"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="per strategy")
    parser.add_argument("--crowd", type=int, default=40, help="participants")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for line in table(options.rounds, options.crowd, options.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
