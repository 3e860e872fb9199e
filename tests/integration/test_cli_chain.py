"""`flockllm audit` on a chain that has ended, and `flockllm deploy`."""

import json
import re
import shutil
from contextlib import ExitStack

import pytest
from chain_game import Game
from click.testing import CliRunner

from flockllm.chain.abi import interface
from flockllm.chain.deploy import tasks
from flockllm.chain.devnet import Devnet, is_running, kept_chain
from flockllm.chain.keys import SCRYPT_N_LIGHT, create_key
from flockllm.chain.rpc import Connection
from flockllm.chain.token import Token
from flockllm.cli import main
from flockllm.config import Network
from flockllm.errors import ChainError


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a task that was played to its end, and whose chain was stopped."""
    folder = tmp_path_factory.mktemp("ended")
    with Devnet.start(folder / "chain") as devnet, ExitStack() as stack:
        game = Game(folder, devnet, stack)
        game.register()
        game.play()
        network = Network(rpc=devnet.rpc_url, chain_id=31_337, store=str(folder / "store"))
        network.write(folder / "network.toml")
        assert is_running(folder / "chain")
    (folder / "report.json").write_text(json.dumps({"task": game.task.address}))
    return folder


@pytest.fixture
def copy(ended, tmp_path):
    """The folder again, to be tampered with."""
    folder = tmp_path / "copy"
    shutil.copytree(ended, folder)
    network = Network(rpc="http://127.0.0.1:1", chain_id=31_337, store=str(folder / "store"))
    network.write(folder / "network.toml")
    return folder


def run(*arguments):
    """Runs the command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_finished_run_is_audited_without_its_processes(ended):
    """By its folder, or by address and network; and the evidence stays as it was."""
    before = (ended / "chain" / "state.json").read_bytes()
    task = json.loads((ended / "report.json").read_text())["task"]
    for arguments in ([ended], [task, "--network", ended / "network.toml"]):
        done = run("audit", *arguments)
        assert done.exit_code == 0, done.output
        assert "holds  round 2: ADOPTED, with 2 of 2 voters for its adapter" in done.output
        assert done.output.rstrip().endswith("statements hold.")
    assert (ended / "chain" / "state.json").read_bytes() == before
    assert not is_running(ended / "chain")


def test_a_changed_byte_of_a_vote_in_the_chains_state_is_found(copy):
    """The first fault is named, with round and block, and the exit code is 1."""
    path = copy / "chain" / "state.json"
    state = json.loads(path.read_text())
    events = interface("Task").events.items()
    topic = "0x" + next(t for t, entry in events if entry["name"] == "VoteRevealed").hex()
    logs = [log for t in state["transactions"] for log in t["receipt"]["logs"]]
    vote = next(log for log in logs if log["topics"][0] == topic)
    vote["data"] = vote["data"][:65] + f"{int(vote['data'][65], 16) ^ 1:x}" + vote["data"][66:]
    path.write_text(json.dumps(state))

    done = run("audit", copy)
    assert done.exit_code == 1
    assert "holds  the first adapter follows" in done.output
    assert re.search(r"round \d, block \d+: 0x\w+'s scores do not open", done.output)


def test_a_folder_without_a_report_says_what_to_pass(copy):
    """A devnet's folder has many tasks."""
    (copy / "report.json").unlink()
    done = run("audit", copy)
    assert done.exit_code == 2
    assert "pass the task's address" in done.output


def test_a_folder_without_a_chain_is_said_to_have_none(tmp_path):
    """Rather than serving an empty one."""
    with pytest.raises(ChainError, match="no state of a chain"), kept_chain(tmp_path):
        pass


@pytest.fixture
def deployer(tmp_path, monkeypatch):
    """A devnet, and arguments of a deployment by a key that has ether."""
    monkeypatch.setenv("FLOCKLLM_PASSWORD", "secret")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    key = create_key(tmp_path / "key.json", "secret", scrypt_n=SCRYPT_N_LIGHT)
    with Devnet.start(tmp_path / "chain") as devnet:
        devnet.give_ether(key.address)
        yield (
            devnet,
            [
                *("deploy", "--rpc", devnet.rpc_url, "--chain-id", 31_337),
                *("--key", tmp_path / "key.json", "--store", tmp_path / "store"),
                *("--out", tmp_path / "network.toml", "--test-token"),
            ],
        )


def test_a_dry_run_tells_the_price_and_sends_nothing(deployer, tmp_path):
    """Gas of each step, the sum in ether, and whether it is there."""
    devnet, arguments = deployer
    done = run(*arguments, "--dry-run")
    assert done.exit_code == 0, done.output
    for step in ("task code", "factory", "test token", "a task", "together"):
        assert step in done.output
    assert "it has 1.000000 ether, enough" in done.output
    assert not (tmp_path / "network.toml").exists()
    with Connection(devnet.rpc_url) as connection:
        who = done.output.partition("paid by ")[2][:42]
        assert connection.call("eth_getTransactionCount", who, "latest") == "0x0"


def test_a_deployment_can_be_used_by_its_network_file(deployer, tmp_path):
    """The file names a factory and a token that are there."""
    _, arguments = deployer
    done = run(*arguments, "--yes", "--confirmations", 2, "--max-fee", 50)
    assert done.exit_code == 0, done.output
    network = Network.read(tmp_path / "network.toml")
    assert (network.confirmations, network.max_fee_gwei) == (2, 50)
    with Connection(network.rpc) as connection:
        assert tasks(connection, network.factory) == []
        assert Token(connection, network.token).symbol == "FLO"
    again = run(*arguments, "--yes")
    assert again.exit_code == 2
    assert "names a deployment" in again.output


def test_without_a_yes_nothing_is_sent(deployer, tmp_path):
    """The price is shown before the question."""
    _, arguments = deployer
    done = CliRunner().invoke(main, [str(a) for a in arguments], input="n\n")
    assert done.exit_code == 1
    assert "together" in done.output
    assert not (tmp_path / "network.toml").exists()


def test_the_wrong_chain_is_refused(deployer):
    """Before the key is opened."""
    _, arguments = deployer
    done = run(*arguments, "--dry-run", "--chain-id", 1)
    assert done.exit_code == 1
    assert "serves chain 31337, not 1" in done.output
