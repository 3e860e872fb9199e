"""What is hosted: a base model, and adapters from wherever they are."""

import json
import logging
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flockllm.errors import ModelError
from flockllm.task import Definition, Lora

log = logging.getLogger(__name__)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

Floats = Mapping[str, NDArray[np.float32]]
"""Adapter tensors by PEFT's on-disk name."""


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model: an adapter by name."""

    name: str
    config: LoraConfig
    tensors: Floats
    about: Mapping[str, str] = field(default_factory=dict)
    """What people should know of it (task, round, CID, losses), in the order shown."""


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """Everything that a server serves."""

    base: str
    """Folder, hub id, or `flockllm-base`."""
    revision: str = ""
    template: str = "alpaca"
    tuned: tuple[Tuned, ...] = ()

    def with_template(self, name: str) -> Self:
        """The same with another prompt template."""
        return replace(self, template=name)


def from_task(
    definition: Definition, tensors: Floats, *, name: str = "", about: Mapping[str, str] = {}
) -> Hosted:
    """A task's model with the task's adapter; `tensors` have been verified by the caller."""
    tuned = Tuned(name or definition.name, _lora_config(definition.lora), tensors, about)
    return Hosted(
        base=definition.model.base,
        revision=definition.model.revision,
        template=definition.model.template,
        tuned=(tuned,),
    )


def from_folder(folder: Path, name: str = "") -> Tuned:
    """An adapter in PEFT's format.

    Raises:
        ModelError: none is there.
    """
    config = _read_config(folder)
    try:
        tensors = {n: t.astype(np.float32) for n, t in load_file(folder / WEIGHTS).items()}
    except FileNotFoundError:
        raise ModelError(f"adapter {folder}: there is no {WEIGHTS}") from None
    except (OSError, SafetensorError, KeyError) as e:
        raise ModelError(f"adapter {folder / WEIGHTS}: not a safetensors file of floats") from e
    about = {"Adapter": str(folder), "LoRA": _summary(config)}
    return Tuned(name or folder.resolve().name, config, tensors, about)


def from_legacy(weights: Path, config_folder: Path, name: str = "") -> Tuned:
    """An adapter as the original saves it: a state dict by `torch.save`, and its config's folder.

    Unpickling is restricted to tensors (`weights_only`), so that the file cannot run code.

    Raises:
        ModelError: none is there, or the file holds anything else.
    """
    config = _read_config(config_folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what may come; what does come is an error below
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"adapter {weights}: there is no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as e:
        raise ModelError(
            f"adapter {weights}: not a file of tensors as torch.save writes it; "
            "anything else in it is not loaded, because it could run code"
        ) from e
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ModelError(f"adapter {weights}: not a state dict of tensors")
    tensors = {key.replace(".default.", "."): t.float().numpy() for key, t in state.items()}
    about = {"Adapter": str(weights), "LoRA": _summary(config)}
    return Tuned(name or "fine-tuned", config, tensors, about)


def _read_config(folder: Path) -> LoraConfig:
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"adapter config {path}: there is no such file") from None
    except (OSError, ValueError) as e:
        raise ModelError(f"adapter config {path}: {e}") from e
    if not isinstance(raw, dict) or raw.get("peft_type", "LORA") != "LORA":
        raise ModelError(f"adapter config {path}: only LoRA adapters are hosted")
    if raw.get("use_dora"):
        raise ModelError(f"adapter config {path}: DoRA cannot share a batch with its base model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keys of older and newer versions of PEFT
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    return config


def _lora_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _summary(config: LoraConfig) -> str:
    targets = config.target_modules
    layers = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    return f"rank {config.r}, α {config.lora_alpha}, {layers}"
