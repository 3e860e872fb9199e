"""The command as a person meets it: help that is instant, errors that say what to do."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from flockllm.cli import VERBS, main
from flockllm.config import Network, find_network, network_path
from flockllm.errors import InvalidConfig


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_help_loads_nothing_heavy():
    """`flockllm --help` answers before torch could even be found."""
    code = (
        "import sys; from flockllm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'numpy', 'transformers', 'httpx', 'eth_account', 'matplotlib'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb):
    """Each verb loads, and says what it is for."""
    run = CliRunner().invoke(main, [verb, "--help"])
    assert run.exit_code == 0, run.output
    assert len(run.output.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["watch", "0x" + "11" * 20], "run `flockllm devnet`"),
        (["watch", "0x" + "11" * 20, "--network", "missing.toml"], "missing.toml"),
        (["demo", "--participants", "3"], "need at least 4"),
        (["demo", "--participants", "4", "--attackers", "5"], "more attackers"),
        (["demo", "--stake", "ten"], "--stake must be an amount"),
        (["task", "create", "missing.toml", "--key", "k.json"], "missing.toml"),
        (["key", "address", "missing.json"], "missing.json"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(arguments, says, tmp_path, monkeypatch):
    """No traceback, exit code 1."""
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 1
    assert says in run.output
    assert "Traceback" not in run.output


def test_a_network_file_survives_writing_and_reading(tmp_path):
    """What devnet writes is what the others read."""
    network = Network(rpc="http://localhost:1", store="/s", chain_id=7, gateways=("a", "b"))
    network.write(network_path("devnet"))
    assert find_network() == network


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rpc = 'x'", "store is missing"),
        ("rpc = 'x'\nstore = 's'\nfoo = 1", "unknown key foo"),
        ("rpc = 3\nstore = 's'", "rpc must be"),
        ("rpc = ", "network file"),
    ],
)
def test_a_wrong_network_file_is_refused_by_key(tmp_path, text, says):
    """The key and the file are named."""
    path = tmp_path / "n.toml"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match=says):
        find_network(str(path))


def test_a_network_file_may_name_neighbours(tmp_path):
    """Relative paths are relative to the file, not to where one stands."""
    path = tmp_path / "n.toml"
    path.write_text("rpc = 'http://x'\nstore = 'content'")
    assert find_network(str(path)).store == str(tmp_path / "content")
