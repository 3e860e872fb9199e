"""Messages of a chat → the prompt that the model was trained with, as tokens."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from flockllm.errors import ModelError

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

OWN = "chat"
"""The name of the template that the tokenizer brings; it writes begin and end marks itself."""

NAMES = ("alpaca", "vicuna", OWN)


def chat_template(name: str, tokenizer: Any) -> str | None:
    """A template's Jinja text, by name or from a `.jinja` file; None for the tokenizer's own.

    Raises:
        ModelError: there is no such template.
    """
    if name == OWN:
        if not tokenizer.chat_template:
            raise ModelError("this tokenizer has no chat template; use --prompt-template alpaca")
        return None
    path = Path(name)
    if path.suffix == ".jinja" and path.is_file():
        return path.read_text()
    if name not in NAMES:
        raise ModelError(f"prompt template {name}: give {', '.join(NAMES)}, or a .jinja file")
    return template_text(name)


def template_text(name: str) -> str:
    """The Jinja text of a template of ours."""
    return (files("flockllm.host") / "templates" / f"{name}.jinja").read_text()


def render(
    tokenizer: Any, template: str | None, messages: Sequence[Message], context: str = ""
) -> list[int]:
    """The prompt's tokens. `context` is the text that the last message is about, if any."""
    text = tokenizer.apply_chat_template(
        list(messages),
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        context=context,
    )
    return encode(tokenizer, text, marks=template is not None)


def encode(tokenizer: Any, text: str, *, marks: bool = True) -> list[int]:
    """A text's tokens, with the marks that the tokenizer begins every text with."""
    tokens: list[int] = tokenizer(text, add_special_tokens=marks, verbose=False)["input_ids"]
    return tokens
