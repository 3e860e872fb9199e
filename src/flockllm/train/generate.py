"""Text from a prompt, all at once or as it comes."""

from collections.abc import Iterator
from contextlib import nullcontext
from threading import Thread
from typing import Any

import torch

from flockllm.errors import ModelError
from flockllm.train.base import Base, Floats
from flockllm.train.templates import OWN_MARKS, template


def generate(
    base: Base,
    adapter: Floats | None,
    instruction: str,
    context: str = "",
    *,
    template_name: str = "alpaca",
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    beams: int = 1,
    seed: int | None = None,
) -> str:
    """The model's answer to an instruction.

    Args:
        base: the model; `adapt` must have been called if an adapter is given.
        adapter: None for the base model alone.
        instruction: what is asked.
        context: a text that it is about, if any.
        template_name: must be the one that was trained with.
        max_tokens: length of the answer at most.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        top_p: draw from the likeliest tokens that make up this probability.
        top_k: draw from this many likeliest tokens; 0 for all.
        beams: how many continuations are kept in beam search.
        seed: makes drawing repeatable.
    """
    inputs = _prompt(base, instruction, context, template_name)
    options = _options(base, max_tokens, temperature, top_p, top_k) | {"num_beams": beams}
    output = _run(base, adapter, inputs, options, seed)
    return _text(base, output[0, inputs["input_ids"].shape[1] :])


def stream(
    base: Base,
    adapter: Floats | None,
    instruction: str,
    context: str = "",
    *,
    template_name: str = "alpaca",
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
) -> Iterator[str]:
    """Like `generate`, in pieces as they come; the pieces joined are the answer."""
    from transformers import TextIteratorStreamer

    inputs = _prompt(base, instruction, context, template_name)
    options = _options(base, max_tokens, temperature, top_p, top_k)
    pieces = TextIteratorStreamer(base.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _run(base, adapter, inputs, options | {"streamer": pieces}, seed)
        except BaseException as e:
            failed.append(e)
            pieces.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    yield from filter(None, pieces)
    worker.join()
    if failed:
        raise failed[0]


def _run(
    base: Base, adapter: Floats | None, inputs: Any, options: dict[str, Any], seed: int | None
) -> Any:
    if adapter is not None:
        if base.peft is None:
            raise ModelError("the base model has no LoRA layers yet: call Base.adapt first")
        base.set_adapter(adapter)
    base.model.eval()
    alone = base.peft.disable_adapter() if base.peft and adapter is None else nullcontext()
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices, enabled=seed is not None), alone:
        if seed is not None:
            torch.manual_seed(seed)
        return base.model.generate(**inputs, **options)


def _prompt(base: Base, instruction: str, context: str, template_name: str) -> Any:
    text = template(template_name)(base.tokenizer, instruction, context, None)
    return base.tokenizer(
        text, add_special_tokens=template_name not in OWN_MARKS, return_tensors="pt"
    ).to(base.device)


def _options(
    base: Base, max_tokens: int, temperature: float, top_p: float, top_k: int
) -> dict[str, Any]:
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature > 0 else {}
    end = base.tokenizer.eos_token_id
    pad = base.tokenizer.pad_token_id
    return {
        "max_new_tokens": max_tokens,
        "do_sample": temperature > 0,
        "pad_token_id": end if pad is None else pad,
        **drawn,
    }


def _text(base: Base, tokens: Any) -> str:
    text: str = base.tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()
