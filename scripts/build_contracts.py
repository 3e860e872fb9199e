"""Compile the contracts into the artifacts that the package ships.

An artifact is `{"contract", "compiler", "abi", "bytecode"}`; `bytecode` is what a transaction
without receiver carries, but for constructor arguments. Task has `blueprint` instead: sent as it
is, the receipt's address is what TaskFactory takes. `--check` compares and writes nothing.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

from vyper.compiler import CompilerData
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.compiler.output import build_abi_output

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "contracts"
ARTIFACTS = ROOT / "src/flockllm/chain/artifacts"
CONTRACTS = ("Task", "TaskFactory", "TestToken")

MAX_CODE = 24_576
"""EIP-170: the most bytes that a contract, blueprints too, may have."""


def artifact(name: str) -> str:
    """The artifact of one contract, as the text of its file."""
    bundle = FilesystemInputBundle([SOURCES])
    data = CompilerData(bundle.load_file(f"{name}.vy"), input_bundle=bundle)
    content: dict[str, object] = {"contract": name, "compiler": f"vyper {version('vyper')}"}
    if name == "Task":
        content["blueprint"] = "0x" + blueprint(data.bytecode).hex()
    else:
        content["bytecode"] = "0x" + data.bytecode.hex()
    return json.dumps(content | {"abi": build_abi_output(data)}, indent=1) + "\n"


def blueprint(initcode: bytes) -> bytes:
    """What deploys `initcode` as an EIP-5202 blueprint: its code will be fe 71 00 ‖ initcode."""
    code = b"\xfe\x71\x00" + initcode
    if len(code) > MAX_CODE:
        raise SystemExit(f"the blueprint has {len(code)} bytes, at most {MAX_CODE} are allowed")
    # PUSH2 size, RETURNDATASIZE (0), DUP2, PUSH1 10, RETURNDATASIZE, CODECOPY, RETURN
    return b"\x61" + len(code).to_bytes(2) + bytes.fromhex("3d81600a3d39f3") + code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    check = parser.parse_args().check
    stale = []
    for name in CONTRACTS:
        path, text = ARTIFACTS / f"{name}.json", artifact(name)
        if not check:
            path.write_text(text)
            print(f"{path.relative_to(ROOT)}: {len(text)} characters")
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    if stale:
        sys.exit(
            f"artifacts differ from the sources: {', '.join(stale)}; run {Path(__file__).name}"
        )


if __name__ == "__main__":
    main()
