"""OpenAI's JSON ⇄ what is asked of the engine.

Fields that change an answer and that we do not have are refused, not ignored. Beyond OpenAI's:
`top_k` (draw from that many tokens), `beams` (beam search) and `context` (the text that an
instruction is about: "Input" in the Alpaca template).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flockllm.host.decoding import Choice
from flockllm.host.engine import Ask
from flockllm.host.loading import Loaded, Model
from flockllm.host.prompts import Message, encode, render

MAX_STOPS, MAX_CHOICES, MAX_DEPTH = 16, 16, 32

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")

Body = dict[str, Any]


class Refused(Exception):
    """A request that is answered with OpenAI's error object."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def body(self) -> Body:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        inner = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": inner}


@dataclass(frozen=True)
class Request:
    """What a completion request wants."""

    model: Model
    asks: Sequence[Ask]
    """One for each choice."""
    stream: bool
    usage: bool
    """Whether a stream ends with a count of tokens."""

    @property
    def prompt_tokens(self) -> int:
        """Of all choices that have a prompt of their own."""
        return sum(len(p) for p in {id(a.prompt): a.prompt for a in self.asks}.values())


def parse(data: bytes) -> Body:
    """The JSON object of a request."""
    try:
        text = data.decode()
        body = None if _is_deep(text) else json.loads(text)
    except ValueError as e:
        raise Refused(400, "invalid_json", f"the request is not JSON: {e}") from e
    if not isinstance(body, dict):
        raise Refused(400, "invalid_json", "the request is not a JSON object")
    return body


def chat_request(body: Body, loaded: Loaded, max_beams: int) -> Request:
    """What a request to /v1/chat/completions wants."""
    messages = _messages(body.get("messages"))
    context = body.get("context") or ""
    if not isinstance(context, str):
        raise _wrong("context", "a string")
    try:
        prompt = render(loaded.tokenizer, loaded.template, messages, context)
    except Exception as e:  # a template is a program; what it raises is about the messages
        raise Refused(400, "invalid_messages", f"the chat template: {e}", "messages") from e
    room = loaded.context - len(prompt)
    return _request(body, loaded, [prompt], max(1, min(room, 512)), max_beams)


def completion_request(body: Body, loaded: Loaded, max_beams: int) -> Request:
    """What a request to /v1/completions wants."""
    prompt = body.get("prompt")
    several = prompt if isinstance(prompt, list) and not _is_tokens(prompt) else [prompt]
    if not 1 <= len(several) <= MAX_CHOICES:
        raise _wrong("prompt", f"one to {MAX_CHOICES} prompts")
    prompts = [_tokens(one, loaded) for one in several]
    return _request(body, loaded, prompts, 16, max_beams)


def _request(
    body: Body, loaded: Loaded, prompts: Sequence[list[int]], default: int, max_beams: int
) -> Request:
    name = body.get("model")
    if not isinstance(name, str):
        raise _wrong("model", "a string")
    if name not in loaded.models:
        raise Refused(
            404,
            "model_not_found",
            f"model {name!r} is not hosted here; hosted are {', '.join(loaded.models)}",
            "model",
        )
    for key, harmless in _UNSUPPORTED.items():
        if key in body and body[key] not in harmless:
            raise Refused(400, "unsupported_parameter", f"{key} is not supported here", key)
    stream, options = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool):
        raise _wrong("stream", "true or false")
    if not isinstance(options, dict):
        raise _wrong("stream_options", "an object")
    for prompt in prompts:
        if len(prompt) >= loaded.context:
            raise Refused(
                400,
                "context_length_exceeded",
                f"the prompt has {len(prompt)} tokens; this model takes {loaded.context} "
                "for prompt and answer together",
                "prompt" if "prompt" in body else "messages",
            )
    model = loaded.models[name]
    count = int(_number(body, "n", 1, 1, MAX_CHOICES, whole=True))
    asks = [
        Ask(
            prompt=prompt,
            adapter=model.adapter,
            choice=_choice(body, default, loaded.context - len(prompt), max_beams, i),
            stops=_stops(body.get("stop")),
        )
        for prompt in prompts
        for i in range(count)
    ]
    return Request(model, asks, stream, bool(options.get("include_usage")))


def _choice(body: Body, default: int, room: int, max_beams: int, index: int) -> Choice:
    key = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    seed = body.get("seed")
    if seed is not None:
        seed = (int(_number(body, "seed", 0, -(2**63), 2**63 - 1, whole=True)) + index) % 2**63
    return Choice(
        max_tokens=min(room, int(_number(body, key, default, 1, 2**31, whole=True))),
        temperature=_number(body, "temperature", 1.0, 0, 2),
        top_p=_number(body, "top_p", 1.0, 0, 1),
        top_k=int(_number(body, "top_k", 0, 0, 2**31, whole=True)),
        beams=int(_number(body, "beams", 1, 1, max_beams, whole=True)),
        seed=seed,
    )


def _is_deep(text: str) -> bool:
    """Whether JSON has more levels than any request needs. The parser recurses, and where another
    library has raised Python's recursion limit (py-evm does), depth would crash the process."""
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _number(
    body: Body, key: str, default: float, low: float, high: float, *, whole: bool = False
) -> float:
    value = body.get(key)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise _wrong(key, f"{'a whole number' if whole else 'a number'} from {low} to {high}")
    return float(value) if not whole else value


def _messages(raw: Any) -> list[Message]:
    if not isinstance(raw, list) or not raw:
        raise _wrong("messages", "a list of messages")
    messages = []
    for i, message in enumerate(raw):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise _wrong(where, "an object with role and content")
        role = "system" if message.get("role") == "developer" else message.get("role")
        if role not in ("user", "assistant") and not (role == "system" and i == 0):
            raise _wrong(f"{where}.role", "user or assistant, or system in the first message")
        messages.append({"role": role, "content": _content(message.get("content"), where)})
    if messages[-1]["role"] != "user":
        raise _wrong("messages", "a list that ends with a message of the user")
    return messages


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise _wrong(f"{where}.content", "text")
    return "".join(map(str, texts))


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(t) is int for t in prompt)


def _tokens(prompt: Any, loaded: Loaded) -> list[int]:
    if isinstance(prompt, str) and (tokens := encode(loaded.tokenizer, prompt)):
        return tokens
    if _is_tokens(prompt):
        known = loaded.model.get_input_embeddings().num_embeddings
        if all(0 <= token < known for token in prompt):
            return list(prompt)
        raise _wrong("prompt", f"token numbers from 0 to {known - 1}")
    raise _wrong("prompt", "a string that is not empty, or a list of token numbers")


def _stops(raw: Any) -> tuple[str, ...]:
    stops = [raw] if isinstance(raw, str) else raw or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise _wrong("stop", f"a string, or a list of at most {MAX_STOPS}")
    if not all(isinstance(stop, str) and 0 < len(stop) <= 1000 for stop in stops):
        raise _wrong("stop", "strings of 1 to 1000 characters")
    return tuple(stops)


def _wrong(key: str, wanted: str) -> Refused:
    return Refused(400, "invalid_value", f"{key} must be {wanted}", key)


_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False, 0),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tools": (None, []),
    "top_logprobs": (None, 0),
}
"""Fields that would change an answer, with the values that ask for nothing."""


Shape = Callable[[int, str, str | None], Body]
"""(index, text, finish) → one entry of `choices`."""


def chat_choice(index: int, text: str, finish: str | None) -> Body:
    """A choice of a whole chat completion."""
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": None}


def chat_delta(index: int, text: str, finish: str | None) -> Body:
    """A choice of a piece of a chat completion."""
    delta = {"content": text} if text else {}
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}


def text_choice(index: int, text: str, finish: str | None) -> Body:
    """A choice of a completion, whole or a piece."""
    return {"index": index, "text": text, "finish_reason": finish, "logprobs": None}


def usage(prompt: int, completion: int) -> Body:
    """The count of tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
