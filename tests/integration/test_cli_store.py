"""`flockllm store` on a chain that runs: room is made, and nothing that a task names is lost."""

from contextlib import ExitStack

import pytest
from chain_game import Game
from click.testing import CliRunner

from flockllm.chain.devnet import Devnet
from flockllm.cli import main
from flockllm.config import Network
from flockllm.store import LocalStore, cid_of


@pytest.fixture
def game(tmp_path):
    """A task that was played to its end, on a chain that still runs."""
    with Devnet.start(tmp_path / "chain") as devnet, ExitStack() as stack:
        game = Game(tmp_path, devnet, stack)
        game.register()
        game.play()
        network = Network(rpc=devnet.rpc_url, chain_id=31_337, store=str(tmp_path / "store"))
        network.write(tmp_path / "network.toml")
        yield game


def run(*arguments):
    """Runs the command in this process."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_collecting_leaves_what_the_task_names_and_what_is_pinned(game, tmp_path):
    """What nobody names goes; afterwards the whole task can still be audited."""
    network = ("--network", tmp_path / "network.toml")
    store = LocalStore(tmp_path / "store")
    junk, kept = (cid_of(store.put(data), len(data)) for data in (b"junk", b"kept"))
    run("store", "pin", kept, *network)

    young = run("store", "collect", game.task.address, *network)
    assert "0 removed" in young
    told = run("store", "collect", game.task.address, "--hours", 0, *network)
    assert told.splitlines()[0] == junk
    assert "1 removed" in told
    assert "All" in run("audit", game.task.address, *network)

    every = CliRunner().invoke(main, ["store", "collect", *map(str, network)])
    assert every.exit_code == 1
    assert "name the tasks" in every.output

    run("store", "unpin", kept, *network)
    assert kept in run("store", "collect", game.task.address, "--hours", 0, *network)
