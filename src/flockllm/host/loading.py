"""Hosted models in memory: one copy of the base, with every adapter on it."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers.utils.logging import disable_progress_bar

from flockllm.errors import ModelError
from flockllm.host.batch import Batch
from flockllm.host.prompts import chat_template
from flockllm.host.sources import Hosted, Tuned
from flockllm.host.switch import Switch, switched
from flockllm.train.base import Base, load_base

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One entry of the list of models."""

    name: str
    adapter: int
    """Its number for the switch; 0 is the base model."""
    about: Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    """What the engine and the API need."""

    model: Any
    switch: Switch
    tokenizer: Any
    template: str | None
    """Jinja text, or None for the tokenizer's own."""
    ends: frozenset[int]
    context: int
    """Tokens of prompt and answer together."""
    models: Mapping[str, Model]
    """By name; the base model first."""


def load(
    hosted: Hosted,
    *,
    base: Base | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device: str = "auto",
    context: int = 0,
) -> Loaded:
    """Loads what is hosted.

    Args:
        hosted: the base model and its adapters.
        base: the base model where it has been loaded, and checked, already.
        load_8bit: as in `train.load_base`, where it can be had; see `bits_here`.
        load_4bit: likewise.
        device: as in `train.load_base`.
        context: fewer tokens than the model can take, to save memory; 0 for what it can take.

    Raises:
        ModelError: something of it is not there or does not fit, and what to do about it.
    """
    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of its casts in each layer
    base = base or load_base(
        hosted.base,
        revision=hosted.revision,
        device=device,
        **bits_here(load_8bit, load_4bit, device),
    )
    folder = Path(hosted.base).expanduser()
    name = folder.resolve().name if folder.is_dir() else hosted.base
    model = base.model
    models = {name: Model(name, 0, {"Weights": _weights(model), "Prompt": hosted.template})}
    for number, tuned in enumerate(hosted.tuned, 1):
        free = tuned.name if tuned.name not in models else f"{tuned.name}-{number}"
        models[free] = Model(free, number, tuned.about)
        model = _add(model, f"a{number}", tuned)
    switch = Switch()
    if hosted.tuned:
        model, switch = switched(model, [f"a{n}" for n in range(1, len(models))])
    _try(model, switch, range(len(models)))
    longest = _longest(base.model.config)
    return Loaded(
        model,
        switch,
        base.tokenizer,
        chat_template(hosted.template, base.tokenizer),
        _ends(base.model, base.tokenizer),
        min(context or longest, longest),
        models,
    )


def bits_here(load_8bit: bool, load_4bit: bool, device: str) -> dict[str, Any]:
    """`load_base`'s arguments: on a CPU without bitsandbytes full precision, and a warning."""
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if (load_8bit or load_4bit) and on_cpu and find_spec("bitsandbytes") is None:
        log.warning(
            "without bitsandbytes the model is loaded in full precision, not in %d bits; "
            "pip install bitsandbytes",
            8 if load_8bit else 4,
        )
        return {}
    return {"load_8bit": load_8bit, "load_4bit": load_4bit}


def _add(model: Any, adapter: str, tuned: Tuned) -> Any:
    """Puts an adapter's layers in and copies its tensors into them."""
    try:
        with warnings.catch_warnings():
            # Another name of the base model; a deprecated one within transformers; GPT-2's layers.
            warnings.simplefilter("ignore")
            if isinstance(model, PeftModel):
                model.add_adapter(adapter, tuned.config)
            else:
                model = get_peft_model(model, tuned.config, adapter_name=adapter)
    except ValueError as e:
        raise ModelError(f"adapter {tuned.name} does not fit the base model: {e}") from e
    own = {
        name.replace(f".{adapter}.", "."): parameter
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name
    }
    found = {name: tuple(tensor.shape) for name, tensor in tuned.tensors.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if found != wanted:
        name = next(n for n in sorted(found.keys() | wanted) if found.get(n) != wanted.get(n))
        raise ModelError(
            f"adapter {tuned.name} does not fit the base model: {name} has shape "
            f"{found.get(name, '(missing)')}, needed is {wanted.get(name, '(no such tensor)')}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(tuned.tensors[name])).requires_grad_(False)
    return model


def _try(model: Any, switch: Switch, adapters: Sequence[int]) -> None:
    """Reads a few tokens at once, and one by one beside another row: the logits must be equal.

    So a model that cannot be batched is refused now, instead of answering wrongly, and what can
    is warm. The bound leaves room for 8-bit arithmetic; wrong keys and values are far beyond it.
    """
    batch = Batch(model.eval(), switch)
    prompt = [3, 5, 7, 4]
    for adapter in adapters:
        batch.clear()
        try:
            with torch.inference_mode():
                batch.join([prompt[:1]], [adapter])
                at_once = batch.join([prompt], [adapter])[0]
                batch.keep([1, 0])
                one_by_one = [batch.step([0, token])[1] for token in prompt[1:]][-1]
            fits = bool((at_once - one_by_one).abs().max() < 0.5 * at_once.std())
            why = "logits differ"
        except (TypeError, ValueError, AttributeError, RuntimeError) as e:
            fits, why = False, str(e)
        if not fits:
            raise ModelError(
                f"{type(model).__name__} keeps no keys and values that can be batched here "
                f"({why}); serve it with --engine vllm"
            )


def _weights(model: Any) -> str:
    count = model.num_parameters()
    bits = [n for n in (8, 4) if getattr(model, f"is_loaded_in_{n}bit", False)]
    kind = f"{bits[0]} bits" if bits else str(model.dtype).removeprefix("torch.")
    return f"{count / 1e6:,.1f} M, {kind}, on {model.device.type}"


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(end for end in [*several, tokenizer.eos_token_id] if end is not None)


def _longest(config: Any) -> int:
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(longest or 2048)
