"""What is hosted, how it is asked, who may ask: the parts of the host around its engine."""

import base64
import json
import pickle
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file

from flockllm.cli.host import host
from flockllm.errors import InvalidConfig, ModelError
from flockllm.host.gate import FREE_FAILURES, LONGEST_WAIT, Failures, Keys, read_keys
from flockllm.host.loading import load
from flockllm.host.prompts import chat_template, render
from flockllm.host.sources import Hosted, from_folder, from_legacy, from_task
from flockllm.host.text import Text
from flockllm.host.vllm import Vllm, command
from flockllm.host.wire import Refused, parse
from flockllm.task import Definition, Lora
from flockllm.train.base import load_base, tensor_list
from flockllm.train.templates import template

LORA = Lora(rank=4, alpha=8, targets=("q_proj", "v_proj"))
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": LORA.rank,
    "lora_alpha": LORA.alpha,
    "lora_dropout": 0.05,
    "target_modules": list(LORA.targets),
    "enable_lora": None,  # old versions of PEFT wrote these two
    "merge_weights": False,
}


@pytest.fixture(scope="module")
def tensors():
    """A random adapter for the packaged base model."""
    random = np.random.default_rng(0)
    shapes = tensor_list("flockllm-base", LORA)
    return {n: random.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}


@pytest.fixture(scope="module")
def base():
    """The packaged base model."""
    return load_base("flockllm-base")


@pytest.fixture
def folder(tmp_path, tensors):
    """The adapter in PEFT's format."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path


def gains(loaded):
    """Every adapter tensor in memory, as one sum per layer."""
    return {n: b.float().sum().item() for n, b in loaded.model.named_buffers() if n[-2:] == ".b"}


def test_the_same_adapter_from_everywhere_is_the_same_in_memory(folder, tensors):
    """PEFT's folder, the original's `.bin` under either of its names, and a task: one model."""
    old = {n: torch.from_numpy(t) for n, t in tensors.items()}
    torch.save(old, folder / "old.bin")
    torch.save({n.replace(".weight", ".default.weight"): t for n, t in old.items()}, folder / "2")

    sources = [
        from_folder(folder),
        from_legacy(folder / "old.bin", folder),
        from_legacy(folder / "2", folder),
        from_task(Definition(name="t", lora=LORA), tensors).tuned[0],
    ]
    found = [gains(load(Hosted(base="flockllm-base", tuned=(source,)))) for source in sources]

    assert all(one == found[0] for one in found)
    assert any(found[0].values())


class Evil:
    """What a malicious `.bin` holds."""

    def __reduce__(self):
        """Runs when unpickled by a careless reader."""
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil()),
        pickle.dumps({"a": Evil()}),
        b"\x80\x04",
        b"",
        b"not a file of torch",
        b"PK\x03\x04",
    ],
    ids=["code", "code in a dict", "pickle cut off", "empty", "text", "zip cut off"],
)
def test_a_bin_that_is_not_tensors_is_refused_and_never_run(folder, content, monkeypatch):
    """Code in a `.bin` does not run; a broken one is an error of ours."""
    monkeypatch.chdir(folder)
    Path("evil.bin").write_bytes(content)
    with pytest.raises(ModelError, match="not a file of tensors"):
        from_legacy(Path("evil.bin"), folder)
    torch.save(Evil(), "evil.bin")
    with pytest.raises(ModelError, match="not a file of tensors"):
        from_legacy(Path("evil.bin"), folder)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {1: torch.zeros(1)}])
def test_a_bin_of_something_else_is_refused(folder, value):
    """Only a dictionary of tensors by name is an adapter."""
    torch.save(value, folder / "other.bin")
    with pytest.raises(ModelError, match="not a state dict"):
        from_legacy(folder / "other.bin", folder)


def test_an_adapter_that_does_not_fit_is_refused(base, tensors):
    """A missing, additional or differently shaped tensor is named, with both shapes."""
    name = sorted(tensors)[0]
    wrong = [
        {n: t for n, t in tensors.items() if n != name},
        tensors | {"base_model.model.more.lora_A.weight": tensors[name]},
        tensors | {name: tensors[name][:, :-1]},
    ]
    for given in wrong:
        hosted = from_task(Definition(name="t", lora=LORA), given)
        with pytest.raises(ModelError, match="does not fit the base model"):
            load(hosted)
    strange = Lora(rank=4, targets=("no_such_layer",))
    with pytest.raises(ModelError, match="does not fit"):
        load(from_task(Definition(name="t", lora=strange), tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"use_dora": True}, "DoRA"),
        (None, "no such file"),
        ([], "only LoRA"),
    ],
)
def test_a_config_that_cannot_be_hosted_is_refused(folder, change, message):
    """Other kinds of adapters, and no config at all."""
    path = folder / "adapter_config.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(CONFIG | change if isinstance(change, dict) else change))
    with pytest.raises(ModelError, match=message):
        from_folder(folder)


def test_adapters_of_one_name_stay_apart(folder):
    """Every model in the list can be asked for."""
    same = from_folder(folder, "flockllm-base")
    loaded = load(Hosted(base="flockllm-base", tuned=(same, same)))
    assert list(loaded.models) == ["flockllm-base", "flockllm-base-1", "flockllm-base-2"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_without_bitsandbytes_8_bit_is_full_precision_and_says_so(caplog):
    """The original's `--load_8bit` works everywhere; what is different is said."""
    loaded = load(Hosted(base="flockllm-base"), load_8bit=True)

    assert loaded.model.dtype == torch.float32
    assert "full precision, not in 8 bits" in caplog.text


@pytest.mark.parametrize("name", ["alpaca", "vicuna"])
@pytest.mark.parametrize("context", ["", "A text.\nWith {braces} and </s>."])
def test_prompts_are_those_of_training(base, name, context):
    """A chat of one message is, token for token, the prompt that adapters are trained with."""
    text = template(name)(base.tokenizer, "Say {it}.", context, None)
    tokens = render(
        base.tokenizer,
        chat_template(name, base.tokenizer),
        [{"role": "user", "content": "Say {it}."}],
        context,
    )
    assert tokens == base.tokenizer(text)["input_ids"]


def test_a_system_message_and_earlier_turns_stand_before_the_question(base):
    """In the order in which they were said, the answers ended as in training."""
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    for name in ("alpaca", "vicuna"):
        tokens = render(base.tokenizer, chat_template(name, base.tokenizer), said)
        text = base.tokenizer.decode(tokens)
        places = [text.index(part) for part in ("Be brief.", "One?", "Two.", "Three?")]
        assert places == sorted(places)
        assert "Two." + base.tokenizer.eos_token in text
        assert "Below is an instruction" not in text


def test_templates_by_name_or_file(base, tmp_path):
    """A `.jinja` file is a template; anything else that is not known is refused."""
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    own = chat_template(str(tmp_path / "own.jinja"), base.tokenizer)
    assert (
        render(base.tokenizer, own, [{"role": "user", "content": "Hi"}])
        == (base.tokenizer("Hi!")["input_ids"])
    )
    for name in ("unknown", "missing.jinja", "chat"):
        if name != "chat" or not base.tokenizer.chat_template:
            with pytest.raises(ModelError):
                chat_template(name, base.tokenizer)


def test_text_comes_in_pieces_that_never_change(base):
    """Joined, the pieces are the text: characters of several tokens come whole."""
    wanted = "Grüße, 世界! 🐑🐑 naïve — fin"
    tokens = base.tokenizer(wanted, add_special_tokens=False)["input_ids"]
    text = Text(base.tokenizer)
    pieces = [text.add([token]) for token in tokens[:-1]] + [text.add(tokens[-1:], last=True)]

    assert "".join(pieces) == base.tokenizer.decode(tokens, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(tokens) > len([piece for piece in pieces if piece])


def test_a_stop_sequence_is_found_across_tokens(base):
    """What may begin it is held back, and given out when it turns out not to be one."""
    tokens = base.tokenizer("abcabd stop here", add_special_tokens=False)["input_ids"]
    text = Text(base.tokenizer, ["abd st", "never"])
    shown = "".join(text.add([token]) for token in tokens)
    assert shown == "abc"
    assert text.stopped
    other = Text(base.tokenizer, ["abx"])
    assert "".join([*(other.add([t]) for t in tokens), other.add([], last=True)]) == (
        "abcabd stop here"
    )


def test_keys_open_by_bearer_and_by_basic(tmp_path):
    """Either kind of line; everything else is closed."""
    path = tmp_path / "keys"
    path.write_text("# who may come\n\nprogram-key\nada:pass:word\n")
    keys = Keys(read_keys(path))

    def basic(text):
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert keys.open("Bearer program-key")
    assert keys.open("bearer ada:pass:word")
    assert keys.open(basic("ada:pass:word"))
    for wrong in ("", "program-key", "Bearer ", "Bearer program-key2", "Basic !!", "Basic /w=="):
        assert not keys.open(wrong)
    assert not keys.open(basic("ada:"))


@pytest.mark.parametrize("content", [None, "", "# only this\n"])
def test_a_key_file_without_keys_is_an_error(tmp_path, content):
    """An empty file does not open the door to everybody."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidConfig):
        read_keys(path)


def test_failures_wait_longer_each_time():
    """A few tries are free, then the wait doubles up to a limit; the right key forgets them."""
    clock = [0.0]
    failures = Failures(lambda: clock[0])
    waits = []
    for _ in range(FREE_FAILURES + 12):
        failures.add("1.2.3.4")
        waits.append(failures.wait("1.2.3.4"))

    assert waits[: FREE_FAILURES - 1] == [0] * (FREE_FAILURES - 1)
    assert waits[FREE_FAILURES - 1 : FREE_FAILURES + 3] == [1, 2, 4, 8]
    assert waits[-1] == LONGEST_WAIT
    assert failures.wait("5.6.7.8") == 0
    clock[0] = LONGEST_WAIT
    assert failures.wait("1.2.3.4") == 0
    failures.forget("1.2.3.4")
    failures.add("1.2.3.4")
    assert failures.wait("1.2.3.4") == 0


def test_deep_json_is_refused_before_it_is_parsed():
    """Brackets in strings do not count; escapes do not hide them."""
    assert parse(json.dumps({"a": "[" * 100 + '\\"' + "{" * 100}).encode())
    for deep in (b'{"a":' + b"[" * 100, b'{"a\\\\":' + b"[" * 100_000, b"\xff\xfe[\x00"):
        with pytest.raises(Refused):
            parse(deep)


def test_the_vllm_command_has_base_adapters_and_template(folder, tmp_path):
    """What `vllm serve` needs is written out, and is an adapter that PEFT reads."""
    hosted = Hosted(base="org/model", revision="abc", tuned=(from_folder(folder, "mine"),))
    out = tmp_path / "out"
    out.mkdir()
    words = command(hosted, out, 8001, load_4bit=True, context=2048)

    line = " ".join(words)
    assert line.startswith("vllm serve org/model --served-model-name org/model --host 127.0.0.1")
    assert "--revision abc --quantization bitsandbytes --max-model-len 2048" in line
    assert re.search(
        r"--enable-lora --max-loras 1 --max-lora-rank 8 --lora-modules mine=\S+$", line
    )
    again = from_folder(Path(words[-1].partition("=")[2]))
    assert again.config.r == LORA.rank
    assert "### Instruction:" in (out / "template.jinja").read_text()


def test_vllm_that_is_not_installed_is_named(monkeypatch):
    """The message says what to install."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match="pip install vllm"):
        Vllm(Hosted(base="flockllm-base"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-weights-path", "x.bin"], "belong together"),
        (["--lora-config-path", "x"], "belong together"),
        (["--task", "0x0", "--round", "first"], "--round must be a number or latest"),
        (["--load-8bit", "perhaps"], "not a valid boolean"),
        (["--engine", "magic"], "'own', 'vllm'"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(words, message):
    """Exit code 2 and what is wrong, before anything is loaded."""
    result = CliRunner().invoke(host, words)
    assert result.exit_code == 2
    assert message in result.output


def test_examples_are_the_first_of_each_category(tmp_path):
    """From the file that is named, else from the packaged data for the packaged model."""
    from flockllm.cli.host import _examples

    path = tmp_path / "data.jsonl"
    rows = [("one", "a"), ("two", "a"), ("three", "b")]
    records = [{"instruction": i, "response": "x", "category": c} for i, c in rows]
    path.write_text("\n".join(map(json.dumps, records)))

    assert _examples(str(path), "anything") == [("one", ""), ("three", "")]
    assert 3 < len(_examples(None, "flockllm-base")) <= 8
    assert _examples(None, "another") == []


def test_beyond_this_machine_there_is_always_a_key(monkeypatch):
    """Listening for others without a key makes one, new each time; the environment can give one."""
    from flockllm.cli.host import _keys

    monkeypatch.delenv("FLOCKLLM_AUTH", raising=False)
    assert _keys(None, public=False) == []
    first, second = _keys(None, public=True), _keys(None, public=True)
    assert len(first[0]) >= 20
    assert first != second
    monkeypatch.setenv("FLOCKLLM_AUTH", "ada:secret")
    assert _keys(None, public=True) == ["ada:secret"]
