"""The frozen model that everyone starts from, loaded once per process."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from flockllm.errors import ModelError
from flockllm.task import PACKAGED_BASE, Lora
from flockllm.train.cpu import has_bfloat16, speed_up
from flockllm.train.last import LastLayer
from flockllm.train.loss import can_narrow, can_pack

log = logging.getLogger(__name__)

Floats = Mapping[str, NDArray[np.float32]]
"""Adapter tensors by PEFT's on-disk name."""


@dataclass
class Base:
    """A base model, its tokenizer, and the LoRA layers put into it.

    The model's own weights never change. `adapt` puts LoRA layers in once; after that an adapter
    is set by copying its tensors into them, and `peft.disable_adapter()` gives the base alone.
    """

    model: Any
    tokenizer: Any
    peft: PeftModel | None = None
    lora: Lora | None = None
    parameters: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    """The LoRA tensors by PEFT's on-disk name, in name order."""

    low_precision: bool = field(default_factory=has_bfloat16)
    """Whether training on a CPU multiplies in bfloat16; scoring never does."""

    _packs: bool | None = None
    _narrows: bool | None = None
    _last: LastLayer | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's first layers are."""
        return torch.device(self.model.device)

    @property
    def packs(self) -> bool:
        """Whether sequences can be trained without padding, as `packing` does."""
        if self._packs is None:
            self._packs = can_pack(self.model)
            self._narrows = self._packs and can_narrow(self.model)
        return self._packs

    def adapt(self, lora: Lora) -> PeftModel:
        """The model with LoRA layers of that shape.

        Raises:
            ModelError: the model has no such layers.
        """
        if self.peft is None or self.lora != lora:
            _ = self.packs  # tried on the bare model
            if self._last:
                self._last.remove()
            if self.peft is not None:
                self.model = self.peft.unload()
            self.peft = _with_lora(self.model, lora)
            self.lora = lora
            if self.device.type == "cpu":
                speed_up(self.peft, lora.dropout, self.low_precision)
            self._last = LastLayer(self.model) if self._narrows else None
            self.parameters = {
                name.replace(".default.", "."): parameter
                for name, parameter in sorted(self.peft.named_parameters())
                if parameter.requires_grad
            }
        return self.peft

    @torch.no_grad()
    def set_adapter(self, adapter: Floats) -> None:
        """Copies an adapter's tensors into the LoRA layers.

        Raises:
            ModelError: names or shapes are not the ones of the LoRA layers.
        """
        if {n: t.shape for n, t in adapter.items()} != {
            n: tuple(p.shape) for n, p in self.parameters.items()
        }:
            raise ModelError("this adapter's tensors are not the ones of this model and LoRA shape")
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.from_numpy(adapter[name]))

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the LoRA layers' tensors."""
        return {
            name: parameter.detach().float().cpu().numpy().copy()
            for name, parameter in self.parameters.items()
        }


def load_base(
    ref: str,
    *,
    revision: str = "",
    load_8bit: bool = False,
    load_4bit: bool = False,
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> Base:
    """Loads a base model and its tokenizer.

    Args:
        ref: a folder, a hub id (`org/name`), or `flockllm-base`, which ships with this package.
        revision: commit on the hub.
        load_8bit: weights in 8 bits, by bitsandbytes (LLM.int8, Dettmers et al., 2022).
        load_4bit: weights in 4 bits, by bitsandbytes (NF4, Dettmers et al., 2023).
        device: `cpu`, `cuda`, `cuda:1`, `balanced` over all GPUs, or `auto`: a GPU if there is one.
        dtype: of the weights; float32 on a CPU and bfloat16 elsewhere if not given.

    Raises:
        ModelError: with what to do about it.
    """
    source = locate(ref)
    disable_progress_bar()  # it would write into the middle of the log
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {device}: PyTorch sees no GPU here; use device 'cpu'")
    options: dict[str, Any] = {
        "dtype": dtype or (torch.float32 if device == "cpu" else torch.bfloat16),
        "revision": revision or "main",
    }
    if load_8bit or load_4bit:
        options["quantization_config"] = _quantization(load_8bit, load_4bit)
    if device != "cpu":
        options["device_map"] = device if device == "balanced" else {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=options["revision"])
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as e:
        raise ModelError(_advice(ref, e)) from e
    if device != "cpu":
        use_liger(model)
    return Base(model.eval().requires_grad_(False), tokenizer)


def tensor_list(base: str | Any, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the LoRA tensors, as PEFT writes them; needs no weights.

    Args:
        base: what `load_base` takes, or a transformers config.
        lora: which layers, which rank.

    Raises:
        ModelError: the model is not there, or has no such layers.
    """
    if isinstance(base, str):
        try:
            base = AutoConfig.from_pretrained(locate(base))
        except (OSError, ValueError, KeyError) as e:
            raise ModelError(_advice(base, e)) from e
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base)
        peft = _with_lora(model.requires_grad_(False), lora)
    return {
        name.replace(".default.", "."): tuple(parameter.shape)
        for name, parameter in sorted(peft.named_parameters())
        if parameter.requires_grad
    }


def _with_lora(model: Any, lora: Lora) -> PeftModel:
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers for a property by its old name, and says when it sees GPT-2's
            # transposed weights, which it then handles.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
            return get_peft_model(model, config)
    except ValueError as e:
        raise ModelError(
            f"{type(model).__name__} has no layers named {', '.join(lora.targets)}; "
            "set lora.targets to names of its linear layers"
        ) from e


def locate(ref: str) -> str:
    """The folder of a base model, or its hub id where it is no folder.

    Raises:
        ModelError: it looks like a folder, and there is none.
    """
    if ref == PACKAGED_BASE:
        return str(files("flockllm") / "assets" / "base_model")
    looks_local = ref.startswith((".", "/", "~")) or ref.count("/") != 1
    path = Path(ref).expanduser()
    if path.is_dir():
        return str(path)
    if looks_local:
        raise ModelError(
            f"base model {ref}: no such folder; give a folder with config.json and "
            f"model.safetensors, a hub id such as org/name, or {PACKAGED_BASE}"
        )
    return ref


def use_liger(model: Any) -> None:
    """Liger's fused kernels for norms, rotations and SwiGLU, if installed; the loss is our own."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError:
        return
    _apply_liger_kernel_to_instance(
        model=model, cross_entropy=False, fused_linear_cross_entropy=False
    )


def _quantization(load_8bit: bool, load_4bit: bool) -> Any:
    if load_8bit and load_4bit:
        raise ModelError("choose one of 8 bit and 4 bit")
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ModelError("8-bit and 4-bit weights need bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_8bit=load_8bit,
        load_in_4bit=load_4bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _advice(ref: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = str(error)
    if "does not recognize this architecture" in text:
        what = "this version of transformers does not know its architecture; upgrade transformers"
    elif Path(ref).expanduser().is_dir():
        what = "the folder needs config.json, model.safetensors and tokenizer.json"
    elif any(word in text for word in ("connect", "offline", "resolve", "couldn't", "Network")):
        what = (
            "the hub is out of reach; with the model in its cache set HF_HUB_OFFLINE=1, "
            "else give a local folder"
        )
    else:
        what = "check the name, or give a local folder"
    return f"base model {ref}: {what} ({first})"
