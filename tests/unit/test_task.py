"""Task files and definitions: what is refused, by name, and what stays the same everywhere."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flockllm.errors import InvalidSpec
from flockllm.task import Definition, TaskFile, Training, folder_digest, in_tokens, tokens


def test_the_example_is_a_task_file():
    """What the documentation shows is accepted."""
    from pathlib import Path

    file = TaskFile.read(Path(__file__).parents[2] / "examples" / "task.toml")
    assert file.terms.rounds == 4
    assert file.pool == 1000 * 10**18


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "name is missing"),
        ({"name": 3}, "name must be str"),
        ({"name": "x", "rouns": 3}, "unknown key rouns"),
        ({"name": "x", "training": {"lr": "fast"}}, "training.lr must be a number"),
        ({"name": "x", "training": {"lr": 0}}, "training.lr must be above 0"),
        ({"name": "x", "training": {"epochs": True}}, "training.epochs must be int"),
        ({"name": "x", "training": 3}, "training must be a table"),
        ({"name": "x", "lora": {"targets": "q_proj"}}, "lora.targets must be a list"),
        ({"name": "x", "terms": {"rounds": 0}}, "terms.rounds must be from 1"),
        ({"name": "x", "terms": {"bond": "ten"}}, "terms.bond must be an amount"),
        ({"name": "x", "terms": {"bond": "0.0000000000000000001"}}, "terms.bond must be an amount"),
        ({"name": "x", "tensors": {}}, "tensors is not for the task file"),
        ({"name": "x", "privacy": "dp"}, "privacy must be 'none'"),
        ({"name": "x", "seed": "zz"}, "seed must be 32 bytes"),
    ],
)
def test_a_wrong_key_is_named(raw, says):
    """A person reads which key is wrong and what it may be."""
    with pytest.raises(InvalidSpec, match=says):
        TaskFile.from_dict(raw)


def test_the_learning_rate_falls_to_a_fifth_over_a_task():
    """However many rounds there are; who chooses a decay gets it."""
    for rounds in (1, 2, 4, 10_000):
        file = TaskFile.from_dict({"name": "x", "terms": {"rounds": rounds}})
        last = file.definition.training.decay ** (rounds - 1)
        assert last == pytest.approx(0.2 if rounds > 1 else 1, rel=0.01), rounds
    chosen = TaskFile.from_dict({"name": "x", "training": {"decay": 1, "lr": 0.5}})
    assert (chosen.definition.training.decay, chosen.definition.training.lr) == (1, 0.5)


@given(
    st.text(max_size=20),
    st.floats(1e-9, 9.9),
    st.dictionaries(st.text(max_size=9), st.tuples(st.integers(1, 9), st.integers(1, 9))),
)
def test_a_definition_has_one_encoding(name, lr, tensors):
    """Reading and writing gives the same bytes, whatever is in it."""
    definition = Definition(name=name, training=Training(lr=lr), tensors=tensors)
    data = definition.to_bytes()
    assert Definition.from_bytes(data) == definition
    assert Definition.from_bytes(data).to_bytes() == data


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data + b" ",
        lambda data: data.replace(b'"lr":"0.002"', b'"lr":0.002'),
        lambda data: data.replace(b'"lr":"0.002"', b'"lr":"2e-3"'),
        lambda data: json.dumps(json.loads(data), indent=1).encode(),
        lambda data: data.replace(b'"protocol":1', b'"protocol":2'),
        lambda data: b"[" * 100_000,
        lambda data: b"\xff",
        lambda data: bytes(2**20 + 1),
    ],
)
def test_a_definition_that_is_not_canonical_is_refused(spoil):
    """One definition, one digest: another spelling of the same is another task, and no task."""
    with pytest.raises(InvalidSpec):
        Definition.from_bytes(spoil(Definition(name="x").to_bytes()))


@pytest.mark.parametrize(
    ("text", "units"), [("10", 10 * 10**18), (0.5, 5 * 10**17), ("1e-18", 1), (0, 0)]
)
def test_amounts_are_exact(text, units):
    """Tokens as people write them, in the smallest unit."""
    assert tokens(text) == units


def test_amounts_are_shown_rounded_down():
    """Nobody is shown more than there is."""
    assert in_tokens(12_345_999 * 10**15) == "12,345.99"
    assert in_tokens(-1 * 10**18) == "-1.00"


def test_the_digest_of_a_folder_sees_every_model_file(tmp_path):
    """A changed byte, a changed name, a file more: another digest. A README changes nothing."""
    (tmp_path / "config.json").write_text("{}")
    seen = {folder_digest(tmp_path)}
    (tmp_path / "README.md").write_text("hello")
    assert folder_digest(tmp_path) in seen
    (tmp_path / "model.safetensors").write_bytes(b"1")
    seen.add(folder_digest(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"2")
    seen.add(folder_digest(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    seen.add(folder_digest(tmp_path))
    assert len(seen) == 4
