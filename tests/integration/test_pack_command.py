"""`flockllm task pack` and the original's `./build_and_upload.sh`: one CID, printed last."""

import os
import subprocess
from pathlib import Path

import pytest

from flockllm.sandbox import open_image
from flockllm.store import LocalStore, parse_cid
from flockllm.task import Definition

ROOT = Path(__file__).parents[2]
SAYS = "Model definition IPFS hash: "


@pytest.fixture
def pack(tmp_path):
    """Runs the script from the repository's root; gives the content behind the CID it prints."""

    def pack(*arguments):
        command = [ROOT / "build_and_upload.sh", *arguments, "--store", tmp_path / "store"]
        environment = os.environ | {"HOME": str(tmp_path)}
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        last = run.stdout.splitlines()[-1]
        assert last.startswith(SAYS)
        _, digest = parse_cid(last.removeprefix(SAYS))
        return digest, LocalStore(tmp_path / "store").get(digest, None, 2**20)

    return pack


def test_own_model_code_has_one_cid(pack, tmp_path):
    """Packing the same folder twice names the same image, which is in the store and readable."""
    first, content = pack("examples/own_model")
    second, _ = pack("examples/own_model", "--image", tmp_path / "kept.tar")

    assert first == second
    assert (tmp_path / "kept.tar").read_bytes() == content
    with open_image(tmp_path / "kept.tar") as image:
        assert list(image.command) == ["python3", "main.py"]
        assert not image.brings_runtime


def test_a_task_file_becomes_its_definition(pack, tmp_path):
    """A declarative task is complete: whoever has the CID knows base, tensors and recipe."""
    seed = "ab" * 32
    task = tmp_path / "task.toml"
    task.write_text(f'seed = "{seed}"\n' + (ROOT / "examples" / "task.toml").read_text())
    _, content = pack(task)

    definition = Definition.from_bytes(content)
    assert definition.tensors
    assert definition.seed == seed
