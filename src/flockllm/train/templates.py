"""Prompt templates by name: how a record becomes the text that a model reads."""

from collections.abc import Callable
from typing import Any

from flockllm.errors import InvalidSpec, ModelError

ALPACA = """\
Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
"""

ALPACA_CONTEXT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{context}

### Response:
"""

VICUNA = """\
A chat between a curious user and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the user's questions. USER: {question} ASSISTANT: """


def _alpaca(_: Any, instruction: str, context: str, response: str | None) -> str:
    form = ALPACA_CONTEXT if context else ALPACA
    return form.format(instruction=instruction, context=context) + (response or "")


def _vicuna(_: Any, instruction: str, context: str, response: str | None) -> str:
    return VICUNA.format(question=_question(instruction, context)) + (response or "")


def _chat(tokenizer: Any, instruction: str, context: str, response: str | None) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            "this base model's tokenizer has no chat template; use template = 'alpaca'"
        )
    messages = [{"role": "user", "content": _question(instruction, context)}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=response is None
    )
    return text


def _question(instruction: str, context: str) -> str:
    return f"{instruction}\n\n{context}" if context else instruction


Template = Callable[[Any, str, str, str | None], str]
"""(tokenizer, instruction, context, response or None) → the text, or the prompt alone."""

TEMPLATES: dict[str, Template] = {"alpaca": _alpaca, "vicuna": _vicuna, "chat": _chat}
"""The names that a task may use. `alpaca`: the original's; `chat`: the tokenizer's own."""

OWN_MARKS = {"chat"}
"""Templates that write begin and end marks themselves, so the tokenizer must not add them."""


def template(name: str) -> Template:
    """The template of that name.

    Raises:
        InvalidSpec: there is none.
    """
    if name not in TEMPLATES:
        raise InvalidSpec(f"template must be one of {', '.join(TEMPLATES)}, got {name!r}")
    return TEMPLATES[name]
