"""Loading base models, what is said when that fails, PEFT files in and out, and generating."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from flockllm.data import Record
from flockllm.errors import ModelError
from flockllm.task import PACKAGED_BASE, Lora, Training
from flockllm.train.base import Base, load_base, tensor_list
from flockllm.train.data import tokenize
from flockllm.train.generate import generate, stream
from flockllm.train.loop import Trainer

LORA = Lora(rank=4, dropout=0.0)
QUESTION = "Who are you?"


@pytest.fixture(scope="module")
def base():
    """The model that ships with the package."""
    return load_base(PACKAGED_BASE, device="cpu")


def adapter_of(base, lora=LORA, scale=0.05):
    """A random adapter whose B is not zero."""
    random = np.random.default_rng(0)
    shapes = tensor_list(base.model.config, lora)
    return {n: random.normal(scale=scale, size=s).astype(np.float32) for n, s in shapes.items()}


def test_the_packaged_model_is_packed_and_frozen(base):
    """It loads without a network, trains without padding, and none of its weights can move."""
    assert base.packs
    assert base.model.dtype == torch.float32
    assert not any(p.requires_grad for p in load_base(PACKAGED_BASE).model.parameters())


def test_tensor_list_needs_no_weights(base, tmp_path):
    """A folder with nothing but a config is enough, and says the same."""
    base.model.config.save_pretrained(tmp_path)

    shapes = tensor_list(str(tmp_path), LORA)

    assert shapes == tensor_list(PACKAGED_BASE, LORA)
    assert shapes["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] == (4, 256)


@pytest.mark.parametrize(
    ("ref", "options", "message"),
    [
        ("./nowhere", {}, "no such folder.*flockllm-base"),
        ("/nowhere/model", {}, "no such folder"),
        ("vicuna-7b", {}, "no such folder"),
        (PACKAGED_BASE, {"load_8bit": True, "load_4bit": True}, "choose one"),
        (PACKAGED_BASE, {"device": "cuda"}, "no GPU here"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(ref, options, message, monkeypatch):
    """One line that names what was asked for and the way out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=message):
        load_base(ref, **options)


def test_a_hub_id_without_network_says_so(monkeypatch):
    """Out of reach, the message names the cache switch and the local folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE=1.*local folder"):
        load_base("nobody/no-such-model")


def test_a_broken_folder_says_what_belongs_there(tmp_path):
    """An empty folder, an unknown architecture: each is named."""
    with pytest.raises(ModelError, match=r"needs config\.json"):
        load_base(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "perceptron9000"}')
    with pytest.raises(ModelError, match="architecture"):
        load_base(str(tmp_path))


def test_layers_that_are_not_there_are_named(base):
    """Wrong LoRA targets name the key to change."""
    with pytest.raises(ModelError, match=r"no_proj.*lora\.targets"):
        tensor_list(base.model.config, Lora(targets=("no_proj",)))


def test_peft_loads_what_was_trained_and_scores_the_same(tmp_path):
    """An adapter written to PEFT's files has, loaded by PEFT alone, the loss we report."""
    base = load_base(PACKAGED_BASE, device="cpu")
    records = [Record(f"Say {i}.", f"Here is {i}, as you asked.") for i in range(6)]
    examples = tokenize(records, base.tokenizer)
    trainer = Trainer(base, LORA, Training(batch=2, lr=1e-2), examples, examples)
    trained = trainer.train(adapter_of(base), seed=0)
    base.peft.peft_config["default"].save_pretrained(tmp_path)
    save_file(trained, tmp_path / "adapter_model.safetensors")

    plain = AutoModelForCausalLM.from_pretrained(base.model.name_or_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, tmp_path).eval()
    total = labels = 0
    for example in examples:
        tokens = torch.from_numpy(example.tokens).long()[None]
        target = tokens.clone()
        target[:, : example.start] = -100
        with torch.inference_mode():
            total += model(input_ids=tokens, labels=target).loss.item() * example.learned
        labels += example.learned

    assert trainer.loss(trained) == pytest.approx(total / labels, rel=1e-5)


def test_greedy_answers_repeat_and_stream_the_same(base):
    """The same question gets the same answer, at once or in pieces."""
    whole = generate(base, None, QUESTION, max_tokens=24)

    assert whole
    assert generate(base, None, QUESTION, max_tokens=24) == whole
    assert "".join(stream(base, None, QUESTION, max_tokens=24)).strip() == whole


def test_an_adapter_changes_the_answer_and_leaves_no_trace(base):
    """With an adapter the answer differs; without, it is the base model's again."""
    base.adapt(LORA)
    before = generate(base, None, QUESTION, max_tokens=24)

    changed = generate(base, adapter_of(base, scale=0.5), QUESTION, max_tokens=24)

    assert changed != before
    assert generate(base, None, QUESTION, max_tokens=24) == before


def test_drawn_answers_follow_the_seed(base):
    """Temperature draws; a seed makes the draw repeatable and leaves other numbers alone."""
    options = {"temperature": 30.0, "top_p": 0.99, "top_k": 50, "max_tokens": 24}
    torch.manual_seed(5)
    state = torch.random.get_rng_state()

    one = generate(base, None, QUESTION, seed=1, **options)
    again = generate(base, None, QUESTION, seed=1, **options)
    other = generate(base, None, QUESTION, seed=2, **options)

    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_beam_search_answers(base):
    """The original's beam search is there."""
    assert generate(base, None, QUESTION, beams=4, max_tokens=24)


def test_an_adapter_needs_layers_first(base):
    """Generating with an adapter on a bare model is an error, not the bare model's answer."""
    bare = Base(base.model, base.tokenizer)
    with pytest.raises(ModelError, match=r"Base\.adapt"):
        generate(bare, {}, QUESTION)


def test_a_failure_while_streaming_reaches_the_reader(base):
    """What breaks in the generating thread is raised where the text is read."""
    base.adapt(LORA)
    with pytest.raises(ModelError, match="not the ones"):
        list(stream(base, {}, QUESTION))
