"""What the package ships is what the sources say, and a plain transaction deploys it."""

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import boa
from eth.codecs.abi import encode

from tests.contracts.play import CREATOR, INITIAL, SPEC, TERMS, plain_token, source

ROOT = Path(__file__).resolve().parents[2]


def artifact(name: str) -> dict:
    """A committed artifact."""
    return json.loads((ROOT / f"src/flockllm/chain/artifacts/{name}.json").read_text())


def test_artifacts_are_fresh():
    """Compiling again gives the committed bytes."""
    done = subprocess.run([sys.executable, ROOT / "scripts/build_contracts.py", "--check"])
    assert done.returncode == 0


def test_a_task_is_deployed_from_artifacts_alone():
    """Blueprint and factory bytecode, sent as they are, make a task that answers."""
    code = bytes.fromhex(artifact("Task")["blueprint"][2:])
    blueprint, deployed = boa.env.deploy_code(bytecode=code)
    assert deployed.startswith(b"\xfe\x71\x00")

    code = bytes.fromhex(artifact("TaskFactory")["bytecode"][2:])
    address, _ = boa.env.deploy_code(bytecode=code + encode("(address)", (str(blueprint),)))
    factory = source("TaskFactory").at(address)
    task = factory.create_task(astuple(TERMS), plain_token(), SPEC, INITIAL, 0, sender=CREATOR)
    assert source("Task").at(task).look(CREATOR)[0][0] == 1
