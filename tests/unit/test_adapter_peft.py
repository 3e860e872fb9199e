import json

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from flockllm.adapter import Adapter, from_peft, to_peft
from flockllm.errors import InvalidUpdate

CONFIG = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def make_base() -> LlamaForCausalLM:
    """The same base model small enough to make on the spot."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes))


@pytest.fixture
def trained(tmp_path):
    """A PEFT adapter with random A and B, saved by PEFT itself: its folder and its logits."""
    config = LoraConfig(task_type="CAUSAL_LM", **CONFIG)
    model = get_peft_model(make_base(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    model.eval().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", logits(model)


def logits(model) -> torch.Tensor:
    """What the model says to a fixed prompt."""
    with torch.inference_mode():
        return model.eval()(torch.arange(20)[None]).logits


def shapes_of(folder) -> dict[str, tuple[int, ...]]:
    """The tensor list of a task with this adapter."""
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    return {name: tensor.shape for name, tensor in tensors.items()}


def test_peft_loads_what_we_write_and_answers_the_same(trained, tmp_path):
    """A trip through our integers and back into PEFT leaves the model's answers as they were."""
    folder, answer = trained
    adapter = from_peft(folder, shapes_of(folder))

    to_peft(adapter, CONFIG, tmp_path / "ours")

    again = logits(PeftModel.from_pretrained(make_base(), tmp_path / "ours"))
    torch.testing.assert_close(again, answer, rtol=0, atol=1e-4)
    assert not torch.allclose(again, logits(make_base()), rtol=0, atol=1e-2)
    assert shapes_of(tmp_path / "ours") == shapes_of(folder)


def test_an_adapter_comes_back_from_peft_as_it_went(trained, tmp_path):
    """Export and import are inverse where numbers are below 1, as trained ones are."""
    shapes = shapes_of(trained[0])
    adapter = Adapter.initial(shapes, b"seed")

    to_peft(adapter, CONFIG, tmp_path / "ours")

    assert from_peft(tmp_path / "ours", shapes) == adapter


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adapters_are_read(trained, dtype):
    """Other programs save in 16 bits; the numbers are theirs, widened."""
    folder, _ = trained
    path = folder / "adapter_model.safetensors"
    half = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(half, path)

    adapter = from_peft(folder, {name: tuple(t.shape) for name, t in half.items()})

    for name, tensor in adapter.floats().items():
        assert np.abs(tensor - half[name].float().numpy()).max() <= 2**-24


@pytest.mark.parametrize(
    "broken", ["absent", "huge", "garbage", "int8", "reshaped", "endless header"]
)
def test_what_is_no_adapter_is_refused(trained, broken):
    """An export of another model, or no export at all, gives one error that names the matter."""
    folder, _ = trained
    shapes = shapes_of(folder)
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    match broken:
        case "absent":
            path.unlink()
        case "huge":
            with path.open("ab") as file:
                file.truncate(1 << 30)
        case "garbage":
            path.write_bytes(b"x" * 100)
        case "int8":
            path.write_bytes(data.replace(b'"F32"', b'"I32"', 1))
        case "reshaped":
            path.write_bytes(data.replace(b"[32,4]", b"[4,32]", 1))
        case "endless header":
            path.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])

    with pytest.raises(InvalidUpdate):
        from_peft(folder, shapes)


def test_the_config_says_what_peft_needs(trained, tmp_path):
    """Everything that is the same for all of our adapters is filled in."""
    adapter = Adapter.zeros(shapes_of(trained[0]))

    to_peft(adapter, CONFIG, tmp_path / "ours")

    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["target_modules"] == CONFIG["target_modules"]
    assert LoraConfig.from_pretrained(tmp_path / "ours").r == 4
