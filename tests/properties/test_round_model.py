"""The contract does what the rules say: same answers, same refusals, same state at every step."""

from random import Random

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flockllm.rounds import Terms
from tests.properties.game import Game


def small_terms(proposers: int, voters: int, number: int, margins: int, random: Random) -> Terms:
    """Terms with short phases and few rounds, odd so that divisions do not come out even."""
    return Terms(
        rounds=number,
        proposers=proposers,
        voters=voters,
        bond=random.choice([1, 9_999, 10**19 + 7]),
        proposer_share=random.choice([0, 3_333, 6_000, 10_000]),
        accept_margin=margins,
        strong_margin=margins + random.choice([1, 100]),
        score_cap=margins + random.choice([100, 200, 9_000]),
        slash_harmful=random.choice([0, 2_000, 10_000]),
        slash_contradictions=random.choice([700, 10_000]),
        slash_attestation=random.choice([500, 10_000]),
        keeper_share=random.choice([0, 1_111, 10_000]),
        train_seconds=70,
        publish_seconds=20,
        evaluate_seconds=50,
        reveal_seconds=30,
        attest_seconds=40,
        idle_timeout=100,
    )


class TaskMachine(RuleBasedStateMachine):
    """Any calls in any order: the contract and the model never differ."""

    @initialize(
        proposers=st.integers(1, 3),
        voters=st.integers(1, 5),
        number=st.integers(1, 4),
        margins=st.sampled_from([0, 1, 1_000]),
        spare=st.integers(0, 3),
        pool=st.sampled_from([0, 1, 999_999, 10**21]),
        random=st.randoms(use_true_random=False),
    )
    def create(self, proposers, voters, number, margins, spare, pool, random):
        """Makes a task in which almost everybody takes part."""
        terms = small_terms(proposers, voters, number, margins, random)
        self.game = Game(terms, pool, terms.committee + spare)
        for who in self.game.people[: terms.committee + spare // 2]:
            self.game.call(who, "register", terms.bond)

    @rule(random=st.randoms(use_true_random=False), steps=st.integers(1, 12))
    def obey(self, random, steps):
        """What the model allows, the contract does."""
        for _ in range(steps):
            self.game.obey(random)

    @rule(random=st.randoms(use_true_random=False), steps=st.integers(1, 6))
    def defy(self, random, steps):
        """What the model refuses, the contract refuses for the same reason."""
        for _ in range(steps):
            self.game.defy(random)

    @rule(random=st.randoms(use_true_random=False))
    def wait(self, random):
        """Time passes, to the edges of deadlines."""
        self.game.hurry(random)

    @invariant()
    def nothing_differs(self):
        """All that can be read is equal, and the money adds up."""
        self.game.compare_all()


TestTask = TaskMachine.TestCase
TestTask.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking a random source takes minutes
    suppress_health_check=list(HealthCheck),
)
