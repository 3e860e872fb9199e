"""The task's Python face on a real node: whole rounds, faithful views, reorganisations.

Four participants play in one process, see `chain_game`.
"""

from contextlib import ExitStack

import pytest
from chain_game import POOL, SCORES, TERMS, Game

from flockllm.chain.deploy import create_task, deploy_factory, deploy_token, estimate, tasks
from flockllm.chain.devnet import Devnet
from flockllm.chain.rpc import Connection, RpcError
from flockllm.chain.sender import Sender
from flockllm.chain.task import Task
from flockllm.errors import ChainError, Reverted
from flockllm.rounds import (
    Duty,
    Outcome,
    Phase,
    Terms,
    Verdict,
    draw_seats,
    draw_seed,
    settlement,
)


@pytest.fixture
def game(tmp_path):
    """A funded task that four people have the money to join."""
    with Devnet.start(tmp_path / "chain") as devnet, ExitStack() as stack:
        yield Game(tmp_path, devnet, stack)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A task of two rounds, played to its end."""
    folder = tmp_path_factory.mktemp("finished")
    with Devnet.start(folder / "chain") as devnet, ExitStack() as stack:
        game = Game(folder, devnet, stack)
        game.register()
        game.play()
        yield game


def test_a_task_is_what_its_creator_asked_for(finished):
    """Terms, token, digests and pool come back as they went in."""
    task = Task(finished.connection, finished.task.address)
    assert task.terms == TERMS
    assert task.creator == finished.creator.address
    assert task.token.address == finished.token.address
    assert task.spec_digest == finished.spec
    assert task.initial_adapter == finished.adapter
    assert tasks(finished.connection, finished.factory) == [task.address]


def test_both_rounds_were_played_and_paid(finished):
    """Every seat did its duty and was settled; both aggregates were adopted."""
    for number in (1, 2):
        assert finished.task.result(number).outcome == Outcome.ADOPTED
        for seat in finished.task.seats(number):
            assert seat.duty == Duty.DONE
            assert seat.settled
            assert seat.scores == (SCORES if seat.voter else ())
            assert seat.verdict == (Verdict.NONE if seat.voter else Verdict.ACCEPTED)


def test_payments_are_those_of_the_rules(finished):
    """The events of settlement say what `rounds.settlement` says."""
    paid = {
        (e.args["round"], e.args["who"]): (e.args["paid"], e.args["slashed"])
        for e in finished.task.events()
        if e.name == "SeatSettled"
    }
    assert len(paid) == 2 * TERMS.committee
    for number in (1, 2):
        seats, result = finished.task.seats(number), finished.task.result(number)
        for at, seat in enumerate(seats):
            expected = settlement(TERMS, result, seats, at)
            assert paid[number, seat.who] == (expected.paid, expected.slashed)


def test_the_draw_can_be_repeated(finished):
    """Seed and seats of the first round follow from its draw block's hash alone."""
    result = finished.task.result(1)
    block = finished.connection.call("eth_getBlockByNumber", hex(result.draw_block), False)
    task = finished.task
    hash_ = bytes.fromhex(block["hash"][2:])
    assert result.seed == draw_seed(task.chain_id, task.address, 1, hash_, 0)
    members = [player.me for player in finished.players]  # in the order of registration
    drawn = [members[i] for i in draw_seats(result.seed, 4, 4)]
    assert drawn == [seat.who for seat in task.seats(1)]


def test_events_come_in_order_and_whole_in_small_portions(finished, monkeypatch):
    """A provider that refuses wide ranges is asked for narrow ones; nothing is lost or doubled."""
    everything = list(finished.task.events())
    call = finished.connection.call

    def narrow(method, *params):
        if method != "eth_getLogs":
            return call(method, *params)
        span = range(int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16))
        if len(span) >= 10:
            raise RpcError("query exceeds max block range 10")
        return call(method, *params)

    monkeypatch.setattr(finished.connection, "call", narrow)
    assert list(finished.task.events()) == everything
    assert [(e.block, e.index) for e in everything] == sorted(
        (e.block, e.index) for e in everything
    )
    middle = everything[len(everything) // 2].block
    assert list(finished.task.events(middle)) == [e for e in everything if e.block >= middle]


def test_everybody_can_leave_with_what_is_theirs(game):
    """After exit and claim the task holds nothing, and the tokens are where the events say."""
    game.register()
    game.play()
    for player in game.players:
        player.task.exit()
        player.task.claim()
    game.task.withdraw_rest()
    game.task.claim()
    assert game.token.balance(game.task.address) == 0
    held = [game.token.balance(who) for who in [p.me for p in game.players]]
    assert sum(held) + game.token.balance(game.creator.address) == POOL + 4 * TERMS.bond
    assert all(amount > TERMS.bond for amount in held)


def test_missing_tokens_are_named_in_tokens(game):
    """Not "execution reverted": who lacks how much of what."""
    player = game.players[0]
    with pytest.raises(ChainError, match=rf"{player.me} lacks 90 FLO of the 100 FLO needed"):
        player.task.register(10 * TERMS.bond)


def test_without_a_key_one_can_only_look(game):
    """A watcher's mistake costs nothing."""
    with pytest.raises(ChainError, match="only be looked at"):
        Task(game.connection, game.task.address).open_round()


def test_an_address_without_a_task_is_said_to_be_wrong(game):
    """Somebody mistyped the address."""
    with pytest.raises(ChainError, match="is the address right"):
        _ = Task(game.connection, "0x" + "12" * 20).terms


def test_refused_terms_name_the_reason(game):
    """The contract checks what it is given, whatever Python lets through."""
    bad = Terms()
    object.__setattr__(bad, "rounds", 0)
    game.token.mint(game.creator.address, 1)
    with pytest.raises(Reverted, match="terms: rounds"):
        create_task(game.creator, game.factory, bad, game.token.address, game.spec, game.adapter, 1)


def test_the_estimate_is_what_deploying_costs(tmp_path):
    """A dry run tells the gas of each step within 2 %, and changes nothing."""
    with (
        Devnet.start(tmp_path / "chain") as devnet,
        Connection(devnet.rpc_url) as connection,
    ):
        who = devnet.keys[0]
        cost = estimate(connection, who.address, test_token=True)
        assert int(connection.call("eth_getTransactionCount", who.address, "latest"), 16) == 0

        sender = Sender(connection, who, tmp_path / "senders")
        used = []
        send = sender.send
        sender.send = lambda *args: used.append(send(*args)) or used[-1]
        factory = deploy_factory(sender)
        token = deploy_token(sender)
        create_task(sender, factory, Terms(), token.address, b"\5" * 32, b"\6" * 32, 0)
        told = [cost.gas[step] for step in ("task code", "factory", "test token", "a task")]
        assert told == pytest.approx([receipt.gas_used for receipt in used], rel=0.02)
        assert cost.balance == 10_000 * 10**18


MOMENTS = [
    Phase.DRAW,
    Phase.TRAIN,
    Phase.PUBLISH,
    Phase.EVALUATE,
    Phase.REVEAL,
    Phase.TALLY,
    Phase.ATTEST,
    Phase.IDLE,
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda phase: phase.name)
def test_a_task_survives_a_reorganisation_in_any_phase(game, moment):
    """Five blocks vanish with all that was in them; the task ends as one without."""
    game.register()
    game.play(lambda state: state.round == 2 - (moment != Phase.IDLE) and state.phase == moment)
    game.connection.call("anvil_reorg", 5, [])
    game.play()

    assert game.task.look(game.task.address).state.phase == Phase.FINISHED
    settled = [e.args for e in game.task.events() if e.name == "SeatSettled"]
    assert len(settled) == 2 * TERMS.committee
    assert sum(e["slashed"] for e in settled) == 0
    for number in (1, 2):
        assert game.task.result(number).outcome == Outcome.ADOPTED


def test_a_registration_that_vanished_comes_back(game):
    """Nobody asks for it again, yet looking is enough."""
    game.connection.call("anvil_mine", "0x5")
    game.register()
    game.connection.call("anvil_reorg", 5, [])
    for _ in range(20):
        if all(player.task.look(player.me).me.registered for player in game.players):
            break
        game.connection.heads(1)
    assert game.task.look(game.task.address).state.active == 4
