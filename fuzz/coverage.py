"""Which branches of Task and its modules are taken both ways, by the tests and by played games.

    python -m fuzz.coverage

A branch is a conditional jump that the compiler's source map ascribes to an `if`, `assert`, `for`,
`and`/`or` or conditional expression; it has two ways. Jumps of the compiler's own (overflow checks,
bounds of loops, calldata checks, the lock) are not counted. All runs in py-evm, whose JUMPI can be
watched: tests/contracts first, then games of fuzz.campaign.
"""

import argparse
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import boa
import pytest
from eth_hash.auto import keccak
from vyper.compiler import CompilerData
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.ir import compile_ir

from flockllm.simulate import evm
from fuzz.campaign import play

SOURCES = Path(__file__).resolve().parent.parent / "contracts"
TESTS = Path(__file__).resolve().parent.parent / "tests/contracts"
COUNTED = ("If", "Assert", "For", "BoolOp", "IfExp", "Compare")
JUMPI = 0x57
QUIET = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
Ways = dict[int, set[bool]]


class Watched:
    """JUMPI that notes, for code of one length, where it stood and whether it jumped."""

    def __init__(self, original: Any, size: int) -> None:
        self.original, self.size = original, size
        self.ways: Ways = {}

    def __call__(self, computation: Any) -> None:
        """Notes and jumps."""
        if len(computation.code) == self.size:
            value = computation._stack.values[-2]  # an int, or bytes as they came from memory
            taken = any(value) if isinstance(value, bytes) else bool(value)
            self.ways.setdefault(computation.code.program_counter - 1, set()).add(taken)
        self.original(computation)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


class Hashes:
    """The hashes of past blocks, latest first, as revm's empty database has them."""

    def __init__(self, block: int) -> None:
        self.block = block

    def __iter__(self) -> Any:
        return (keccak(str(self.block - 1 - depth).encode()) for depth in range(256))


class PyEvm:
    """py-evm with the few methods of revm that `Chain` uses."""

    def __init__(self) -> None:
        self.patch = boa.env.evm.patch
        self.patch.chain_id = evm.CHAIN_ID
        self.result: Any = None

    def set_block_env(self, block: Any) -> None:
        """Time and height."""
        self.patch.block_number, self.patch.timestamp = block.number, block.timestamp
        self.patch.prev_hashes = Hashes(block.number)

    def reset_transient_storage(self) -> None:
        """It ends with each call here."""

    def deploy(self, who: str, code: bytes) -> str:
        """A new contract's address."""
        return str(boa.env.deploy_code(sender=who, bytecode=code)[0])

    def message_call(self, who: str, to: str, data: bytes) -> bytes:
        """A transaction."""
        done = boa.env.execute_code(to_address=to, sender=who, data=data)
        if done.is_error:
            raise RuntimeError(f"output: 0x{done.output.hex()}")
        logs = [
            SimpleNamespace(address="0x" + raw[1].hex(), data=([*map(word, raw[2])], raw[3]))
            for raw in done.get_raw_log_entries()
        ]
        self.result = SimpleNamespace(logs=logs)
        return bytes(done.output)


def word(topic: int) -> bytes:
    """A topic as bytes."""
    return topic.to_bytes(32)


def branches() -> tuple[int, dict[int, Any]]:
    """The size of a task's code, and the source of each counted jump."""
    bundle = FilesystemInputBundle([SOURCES])
    data = CompilerData(bundle.load_file("Task.vy"), input_bundle=bundle)
    code, maps = compile_ir.assembly_to_evm(data.assembly_runtime, compiler_metadata=None)
    found, at = {}, 0
    while at < len(code):
        node = maps["pc_raw_ast_map"].get(at)
        if code[at] == JUMPI and type(node).__name__ in COUNTED:
            found[at] = node
        at += code[at] - 0x5E if 0x60 <= code[at] <= 0x7F else 1
    ends = {id(node): at for at, node in found.items()}  # a loop's own jump is its last
    found = {at: n for at, n in found.items() if type(n).__name__ != "For" or ends[id(n)] == at}
    immutables = data.global_ctx.immutable_section_bytes
    return len(code) + immutables, found


def main() -> None:
    """Plays, and lists what was never taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=8)
    parser.add_argument("--least", type=float, default=95, help="fail below so many percent")
    options = parser.parse_args()
    size, counted = branches()
    lookup = boa.env.evm.vm.state.computation_class.opcodes
    watched = lookup[JUMPI] = Watched(lookup[JUMPI], size)
    tests = [str(path) for path in sorted(TESTS.glob("test_*.py")) if "gas" not in path.name]
    if failed := pytest.main([*QUIET, *tests]):
        sys.exit(int(failed))
    evm.EVM = PyEvm  # type: ignore[misc, assignment]
    for seed in Random(1).sample(range(10**6), options.games):
        with boa.env.anchor():
            play(seed)
    taken = sum(len(watched.ways.get(at, ())) for at in counted)
    for at, node in counted.items():
        if len(watched.ways.get(at, ())) < 2:
            where = f"{Path(node.module_node.path).name}:{node.lineno}"
            print(f"one way only: {where}: {source(node)}")
    percent = 100 * taken / (2 * len(counted))
    print(f"branches: {taken} of {2 * len(counted)} ({percent:.1f} %)")
    sys.exit(percent < options.least)


def source(node: Any) -> str:
    """The first line of a node's source."""
    return str(node.node_source_code.splitlines()[0])[:80]


if __name__ == "__main__":
    main()
