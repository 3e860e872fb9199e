"""A chain of one's own: kept in its folder, dead with its parent, found or installed."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flockllm.chain.deploy import deploy_token
from flockllm.chain.devnet import Devnet, cache_folder, find_anvil
from flockllm.chain.rpc import Connection, connect
from flockllm.chain.sender import Sender
from flockllm.chain.token import Token
from flockllm.errors import ChainError, InvalidConfig


def test_what_was_on_the_chain_is_there_after_a_restart(tmp_path):
    """Balances, receipts, logs and old blocks: enough to audit a task whose chain was stopped."""
    with Devnet.start(tmp_path) as devnet, Connection(devnet.rpc_url) as connection:
        token = deploy_token(Sender(connection, devnet.keys[0], tmp_path / "senders"))
        receipt = token.mint(devnet.keys[1].address, 7)
        block = connection.call("eth_getBlockByNumber", hex(receipt.block), False)
        keys = devnet.keys
    with Devnet.start(tmp_path) as devnet, Connection(devnet.rpc_url) as connection:
        assert devnet.keys == keys
        assert Token(connection, token.address).balance(keys[1].address) == 7
        assert connection.call("eth_getBlockByNumber", hex(receipt.block), False) == block
        logs = {"address": token.address, "fromBlock": "0x0", "toBlock": "latest"}
        assert len(connection.call("eth_getLogs", logs)) == 1


def test_it_stops_once_and_for_all(tmp_path):
    """Stopping twice is stopping once, and the process is gone."""
    devnet = Devnet.start(tmp_path)
    devnet.stop()
    devnet.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(devnet.pid, 0)


def test_two_cannot_share_a_folder(tmp_path):
    """The second one would overwrite the first one's state."""
    with Devnet.start(tmp_path), pytest.raises(InvalidConfig, match="another devnet runs in"):
        Devnet.start(tmp_path)


def test_a_taken_port_is_said_to_be_taken(tmp_path):
    """A port that was asked for is used or refused, never swapped for another."""
    with (
        Devnet.start(tmp_path / "one") as devnet,
        pytest.raises(ChainError, match=f"does not start on port {devnet.port}"),
    ):
        Devnet.start(tmp_path / "two", devnet.port)


HOST = """
    import sys, time
    from pathlib import Path
    from flockllm.chain.devnet import Devnet

    with Devnet.start(Path(sys.argv[1])) as devnet:
        print(devnet.pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT], ids=lambda blow: blow.name)
def test_the_chain_dies_with_its_parent_and_keeps_its_state(tmp_path, blow):
    """No orphan after kill -9; and Ctrl-C is an ordinary end."""
    host = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOST), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with host:
        anvil = int(host.stdout.readline())
        host.send_signal(blow)
        host.wait(60)
    end = time.monotonic() + 60
    while Path(f"/proc/{anvil}/cmdline").exists() and time.monotonic() < end:
        if Path(f"/proc/{anvil}/cmdline").read_bytes() == b"":  # ended, not yet reaped by init
            break
        time.sleep(0.01)
    else:
        assert time.monotonic() < end, "anvil lives on"
    assert (tmp_path / "state.json").stat().st_size > 0


def test_blocks_come_by_themselves_and_never_from_the_future(tmp_path):
    """Deadlines pass while nobody acts, and no block is later than the clock."""
    with Devnet.start(tmp_path) as devnet, connect(devnet.rpc_url) as connection:
        sender = Sender(connection, devnet.keys[0], tmp_path / "senders")
        token = deploy_token(sender)
        first = connection.heads(5)
        seen = [first]
        while len(seen) < 12:
            if len(seen) % 3 == 0:
                token.mint(devnet.keys[1].address, 1)  # a block at once, between the others
            seen.append(connection.heads(5))
            assert seen[-1].timestamp <= time.time()
        numbers = [head.number for head in seen]
        assert numbers == sorted(numbers)
        assert len(set(numbers)) == len(numbers)


def fake_npm(folder: Path, log: Path) -> Path:
    """An npm that installs slowly, and notes that it was called."""
    npm = folder / "npm"
    npm.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        echo called >> {log}
        while [ "$1" != "--prefix" ]; do shift; done
        sleep 0.5
        mkdir -p "$2/node_modules/@foundry-rs/anvil-test/bin"
        echo '#!/bin/sh' > "$2/node_modules/@foundry-rs/anvil-test/bin/anvil"
        """)
    )
    npm.chmod(0o755)
    return npm


def find(queue):
    """What a process finds."""
    queue.put(find_anvil())


def test_it_is_installed_once_by_however_many_ask(tmp_path, monkeypatch):
    """Four processes on a fresh machine: one installation, one binary, found by all."""
    log = tmp_path / "log"
    fake_npm(tmp_path, log)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=find, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    (found,) = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert found == cache_folder() / "anvil@1.7.1" / "anvil"
    assert found.stat().st_mode & stat.S_IXUSR
    assert log.read_text().count("called") == 1
    assert [path.name for path in found.parent.iterdir()] == ["anvil"]


def test_without_a_registry_it_says_what_to_do(tmp_path, monkeypatch):
    """npm's own reason, and the two ways out."""
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error ENOTFOUND registry' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ChainError, match=r"ENOTFOUND registry.*put `anvil` on PATH"):
        find_anvil()


def test_an_anvil_on_the_path_is_preferred(tmp_path, monkeypatch):
    """Who has foundry needs no download."""
    anvil = tmp_path / "anvil"
    anvil.write_text("#!/bin/sh\n")
    anvil.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_anvil() == anvil
