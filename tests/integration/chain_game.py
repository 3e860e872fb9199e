"""A task on a devnet, played by participants in one process that decide as nodes do.

Training is left out: updates are small and random, scores are fixed, all else is real.
"""

from contextlib import suppress

import numpy as np

from flockllm.adapter import Adapter, Update
from flockllm.aggregate import RULES
from flockllm.chain.deploy import create_task, deploy_factory, deploy_token
from flockllm.chain.rpc import Connection
from flockllm.chain.sender import Sender
from flockllm.chain.task import Task
from flockllm.errors import Reverted
from flockllm.rounds import (
    Advance,
    Attest,
    Draw,
    OpenRound,
    Propose,
    Publish,
    Reveal,
    Settle,
    Stop,
    Tally,
    Terms,
    TopUp,
    Vote,
    Wait,
    commitment,
    next_action,
    pack_scores,
    word,
)
from flockllm.store import LocalStore, digest_of
from flockllm.task import Definition

POOL = 1_000 * 10**18 + 1  # cannot be divided, so that something is left for the creator
TERMS = Terms(
    rounds=2,
    proposers=2,
    voters=2,
    train_seconds=600,
    publish_seconds=600,
    evaluate_seconds=600,
    reveal_seconds=600,
    attest_seconds=600,
)
SCORES = (300, 500)
SHAPES = {"q.lora_A.weight": (2, 8), "q.lora_B.weight": (8, 2)}
DEFINITION = Definition(name="a game", tensors=SHAPES)
CODEC = DEFINITION.aggregation.codec


class Player:
    """One participant that never trains and never sleeps."""

    def __init__(self, game, key):
        sender = game.sender(key)
        self.task = Task(sender.connection, game.task.address, sender)
        self.store, self.key, self.me = game.store, key, key.address
        self.refuses = set()
        """(round, action) that it leaves out, as one that is gone would; `Abstain` abstains."""
        self.scores = {}
        """Its scores of a round, where they are not those of everybody."""

    def step(self):
        """Looks, decides and acts once; what it refuses to do it waits through."""
        head = self.task.connection.head()
        view = self.task.look(self.me)
        past = {n: self.task.seats(n) for n in range(1, view.state.round)}
        action = next_action(
            self.task.terms,
            view,
            self.me,
            head.timestamp,
            block=head.number,
            past=past,
            top_up_limit=self.task.token.balance(self.me),
        )
        if (view.state.round, type(action)) in self.refuses:
            return Wait(view.state.deadline)
        with suppress(Reverted):  # somebody was faster, or a reorganisation changed the state
            self.act(action)
        return action

    def act(self, action):
        match action:
            case OpenRound():
                self.task.open_round()
            case Draw():
                self.task.draw()
            case Advance():
                self.task.advance()
            case TopUp(amount):
                self.task.top_up(amount)
            case Tally():
                self.task.tally()
            case Settle(round_, who):
                self.task.settle(round_, who)
            case Propose(round_, _) if (round_, "abstain") in self.refuses:
                self.task.abstain(round_)
            case Propose(round_, _):
                content = digest_of(self.update(round_))
                self.task.commit_update(round_, self.bind(round_, content, "update"))
            case Publish(round_, _, _):
                data, salt = self.update(round_), self.salt(round_, "update")
                self.task.publish_update(round_, self.store.put(data), len(data), salt)
            case Vote(round_, _, _):
                content = word(pack_scores(self.opinion(round_)))
                self.task.commit_vote(round_, self.bind(round_, content, "vote"))
            case Reveal(round_, _, _, _):
                self.task.reveal_vote(round_, self.opinion(round_), self.salt(round_, "vote"))
            case Attest(round_, current, accepted):
                self.task.attest(round_, self.store.put(self.aggregate(current, accepted)))

    def update(self, round_):
        """The same bytes each time, others for each player and round."""
        numbers = np.random.default_rng([round_, *self.key.private])
        current = Adapter.zeros(SHAPES)
        trained = {n: numbers.normal(0, 0.1, s).astype(np.float32) for n, s in SHAPES.items()}
        return Update.from_floats(current, trained, CODEC).to_bytes(CODEC)

    def aggregate(self, current, accepted):
        size = len(Adapter.zeros(SHAPES).to_bytes())
        adapter = Adapter.from_bytes(self.store.get(current, size, size), SHAPES)
        updates = [
            Update.from_bytes(self.store.get(digest, length, length), SHAPES, CODEC)
            for digest, length, _ in accepted
        ]
        weights = [weight for _, _, weight in accepted]
        return RULES[DEFINITION.aggregation.rule](adapter, updates, weights).to_bytes()

    def opinion(self, round_):
        return self.scores.get(round_, SCORES)

    def salt(self, round_, purpose):
        return self.key.salt(self.task.address, round_, purpose)

    def bind(self, round_, content, purpose):
        salt = self.salt(round_, purpose)
        return commitment(self.task.chain_id, self.task.address, round_, self.me, content, salt)


class Game:
    """A task on a devnet of its own, and four or more players of it."""

    def __init__(self, folder, devnet, stack, *, terms=TERMS, players=4, spare=0):
        self.folder, self.devnet, self.stack = folder, devnet, stack
        self.connection = self.connect()
        self.store = LocalStore(folder / "store")
        self.creator = self.sender(devnet.keys[0])
        self.token = deploy_token(self.creator)
        self.factory = deploy_factory(self.creator)
        self.token.mint(self.creator.address, POOL)
        first = Adapter.initial(SHAPES, bytes.fromhex(DEFINITION.seed))
        self.spec = self.store.put(DEFINITION.to_bytes())
        self.adapter = self.store.put(first.to_bytes())
        address = create_task(
            self.creator, self.factory, terms, self.token.address, self.spec, self.adapter, POOL
        )
        self.task = Task(self.connection, address, self.creator)
        self.players = [Player(self, key) for key in devnet.keys[1 : players + 1]]
        for player in self.players:
            self.token.mint(player.me, terms.bond + spare)

    def connect(self):
        """Each has its own, as each has its own process elsewhere."""
        return self.stack.enter_context(Connection(self.devnet.rpc_url))

    def sender(self, key):
        return Sender(self.connect(), key, self.folder / "senders")

    def register(self):
        for player in self.players:
            player.task.register(self.task.terms.bond)

    def state(self):
        return self.task.look(self.creator.address).state

    def play(self, until=lambda state: False):
        """Lets all play until the task is over, or `until` says so after any step."""
        for _ in range(500):
            before, actions = self.state(), []
            for player in self.players:
                actions.append(player.step())
                if until(self.state()):
                    return
            if all(isinstance(action, Stop) for action in actions):
                return
            if all(isinstance(a, Wait) for a in actions) and before == self.state():
                self.wait(min((a.until for a in actions if a.until), default=0))
        raise AssertionError(f"it never ended: {self.state()}")

    def wait(self, until):
        """Nobody does anything before `until`: it comes at once. Else for a block."""
        now = self.connection.head().timestamp
        if until > now:
            self.connection.call("evm_increaseTime", until - now)
            self.connection.call("evm_mine")
        else:
            self.connection.heads(1)

    def seat(self, round_, voter, at=0):
        """The player of a seat."""
        who = [seat.who for seat in self.task.seats(round_) if seat.voter == voter][at]
        return next(player for player in self.players if player.me == who)
