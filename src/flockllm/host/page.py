"""The page: one instruction, the answers of two models side by side. A client of the API."""

import asyncio
import html
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from importlib.resources import files
from typing import Any

import httpx
from starlette.applications import Starlette

from flockllm.errors import ModelError
from flockllm.host.loading import Model

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
try:
    import gradio as gr
except ImportError as e:
    raise ModelError("the page needs gradio: pip install 'flockllm[host]', or --no-page") from e

EXAMPLES = (
    ("Who are you?", ""),
    ("What is the capital of France?", ""),
    ("Write a short story about a dog.", ""),
    ("Name three things to eat for breakfast.", ""),
)
"""Where neither the command nor a file names any."""

Turns = list[dict[str, str]]
"""A chat as Gradio shows it: role and content."""

ANSWER_TIMEOUT = httpx.Timeout(10, read=600)
"""Seconds; a request may wait long in the queue before its first word comes."""

REFRESH = 0.05
"""Seconds between two updates of the page, at the least."""


def mount(
    app: Starlette,
    api: str,
    key: str,
    models: Sequence[Model],
    examples: Sequence[tuple[str, str]],
) -> None:
    """Puts the page at `/` of an application whose API is at the URL `api`."""
    gr.mount_gradio_app(
        app,  # any Starlette will do
        _page(_Client(api, key), models, examples or EXAMPLES),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=0,
        theme=_theme(),
        css=(files("flockllm.host") / "page.css").read_text(),
    )


class _Client:
    """Asks the API, and gives its answers piece by piece."""

    def __init__(self, api: str, key: str) -> None:
        self._url = f"{api}/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"}

    async def stream(self, model: str, body: Mapping[str, Any]) -> AsyncIterator[str]:
        """The pieces of a model's answer.

        Raises:
            _Refused: with what the API says is wrong.
        """
        body = {**body, "model": model, "stream": True}
        try:
            async with (
                httpx.AsyncClient(timeout=ANSWER_TIMEOUT, trust_env=False) as client,
                client.stream("POST", self._url, json=body, headers=self._headers) as answer,
            ):
                if answer.status_code != 200:
                    raise _error(json.loads(await answer.aread()))
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise _error(event)
                        for choice in event["choices"]:
                            yield choice["delta"].get("content") or ""
        except httpx.TransportError as e:
            raise _Refused(f"the server is out of reach: {e}") from e


class _Refused(Exception):
    """There is no answer, and why."""


def _error(body: Mapping[str, Any]) -> _Refused:
    return _Refused(body["error"]["message"])


def _say(reason: str) -> None:
    """Shows a message. (`gr.Error` would also cover both chats with the word Error.)"""
    gr.Warning(html.escape(reason[:1].upper() + reason[1:]), title="No answer")


async def _side_by_side(
    client: _Client, models: Sequence[str], body: Mapping[str, Any]
) -> AsyncIterator[list[str]]:
    """The answers so far, of all models at once."""
    answers = [""] * len(models)

    async def follow(i: int, model: str) -> None:
        async with aclosing(client.stream(model, body)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                answers[i] += piece

    tasks = [asyncio.create_task(follow(i, model)) for i, model in enumerate(models)]
    try:
        running: set[asyncio.Task[None]] = set(tasks)
        while running:
            done, running = await asyncio.wait(
                running, timeout=REFRESH, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            yield list(answers)  # at last once more after the last task is done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _page(
    client: _Client, models: Sequence[Model], examples: Sequence[tuple[str, str]]
) -> gr.Blocks:
    names = [model.name for model in models]
    shown = names[:2]
    with gr.Blocks(title="FLockLLM", analytics_enabled=False) as page:
        gr.HTML(_heading(models), elem_id="heading")
        with gr.Row(elem_id="answers"):
            chats = [_chat(i, name, len(shown)) for i, name in enumerate(shown)]
        with gr.Row(elem_id="ask"):
            instruction = gr.Textbox(
                label="Instruction",
                placeholder="What should the model do? Enter sends, Shift+Enter begins a line.",
                lines=2,
                max_lines=8,
                autofocus=True,
                scale=3,
                elem_id="instruction",
            )
            context = gr.Textbox(
                label="Input",
                placeholder="What it is about, if anything.",
                lines=2,
                max_lines=8,
                scale=2,
                elem_id="context",
            )
        with gr.Row(elem_id="buttons"):
            send = gr.Button("Send", variant="primary", elem_id="send", scale=3, min_width=120)
            stop = gr.Button("Stop", elem_id="stop", interactive=False, min_width=80)
            clear = gr.Button("Clear", elem_id="clear", min_width=80)
        offered = gr.Dataset(
            components=[gr.Textbox(render=False)],
            samples=[[asked] for asked, _ in examples],
            type="index",
            label="Try",
            show_label=False,
            elem_id="examples",
        )
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            sides = _sides(names) if len(names) > 2 else []
            with gr.Row():
                beams = gr.Slider(
                    *(1, 4, 4),
                    step=1,
                    label="Beams",
                    info="Above 1: the best of so many answers, nothing is drawn.",
                    elem_id="beams",
                )
                max_tokens = gr.Slider(
                    *(1, 2000, 128),
                    step=1,
                    label="Max tokens",
                    info="Length of the answer.",
                    elem_id="max-tokens",
                )
                stream = gr.Checkbox(
                    True, label="Stream", info="Show words as they come.", elem_id="stream"
                )
            with gr.Row():
                temperature = gr.Slider(
                    *(0, 1, 0.1),
                    label="Temperature",
                    info="With one beam. 0: always the likeliest word.",
                    elem_id="temperature",
                )
                top_p = gr.Slider(
                    *(0, 1, 0.75),
                    label="Top p",
                    info="With one beam. Draws from the likeliest words of this share.",
                    elem_id="top-p",
                )
                top_k = gr.Slider(
                    *(0, 100, 40),
                    step=1,
                    label="Top k",
                    info="With one beam. Draws from so many likeliest words; 0 for all.",
                    elem_id="top-k",
                )

        async def answer(*values: Any) -> AsyncIterator[Any]:
            histories: list[Turns] = [list(turns or []) for turns in values[: len(shown)]]
            asked, about, t, p, k, b, most, streams, *chosen = values[len(shown) :]
            if not (asked or "").strip():
                _say("write an instruction first.")
                yield [*histories, *idle()]
                return
            question = f"{asked.strip()}\n\n{about.strip()}".strip()
            body = {
                "messages": [{"role": "user", "content": asked.strip()}],
                "context": about.strip(),
                "temperature": t,
                "top_p": p,
                "top_k": int(k),
                "beams": int(b),
                "max_tokens": int(most),
            }
            user = {"role": "user", "content": _literal(question)}

            def turns(answers: Sequence[str]) -> list[Turns]:
                return [
                    [*history, user, {"role": "assistant", "content": _literal(text) or "…"}]
                    for history, text in zip(histories, answers, strict=True)
                ]

            answers = [""] * len(shown)
            yield [*turns(answers), gr.update(interactive=False), gr.update(interactive=True)]
            try:
                async with aclosing(_side_by_side(client, chosen or shown, body)) as following:  # type: ignore[type-var]
                    async for answers in following:
                        if streams:
                            yield [*turns(answers), gr.skip(), gr.skip()]
                yield [*turns([text.strip() for text in answers]), *idle()]
            except _Refused as e:
                _say(str(e))
                yield [*histories, *idle()]

        def idle() -> list[Any]:
            return [gr.update(interactive=True), gr.update(interactive=False)]

        offered.click(
            lambda i: list(examples[i]),
            offered,
            [instruction, context],
            queue=False,
            api_visibility="private",
        )
        wanted = [instruction, context, temperature, top_p, top_k, beams, max_tokens, stream]
        running = gr.on(
            [send.click, instruction.submit],
            answer,
            [*chats, *wanted, *sides],
            [*chats, send, stop],
            show_progress="hidden",
            concurrency_limit=None,
            trigger_mode="once",
            api_visibility="private",
        )
        stop.click(
            idle, None, [send, stop], cancels=[running], queue=False, api_visibility="private"
        )
        clear.click(
            lambda: [*([] for _ in chats), "", "", *idle()],
            None,
            [*chats, instruction, context, send, stop],
            cancels=[running],
            queue=False,
            api_visibility="private",
        )
    page.queue(default_concurrency_limit=None, max_size=64)
    return page  # type: ignore[no-any-return]


def _chat(i: int, name: str, count: int) -> gr.Chatbot:
    what = ("What the base model says", "What it says with the adapter")
    return gr.Chatbot(
        label=f"{('Original', 'Fine-tuned')[i]} · {name}",
        placeholder=what[i] if count > 1 else "The answer comes here.",
        buttons=["copy", "copy_all"],
        layout="bubble",
        render_markdown=False,
        height="",
        elem_id=f"chat-{i}",
        elem_classes="chat",
    )


def _literal(text: str) -> str:
    """Text that a chat shows as it is. Gradio renders HTML there, so what could be some is escaped;
    the rest is left alone, because the copy button copies what stands here."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))


def _sides(names: Sequence[str]) -> list[gr.Dropdown]:
    with gr.Row():
        return [
            gr.Dropdown(names, value=names[i], label=label, elem_id=f"model-{i}")
            for i, label in enumerate(("Left", "Right"))
        ]


def _heading(models: Sequence[Model]) -> str:
    cards = "".join(f"<dl>{_facts({'Model': m.name, **m.about})}</dl>" for m in models)
    return f"""
      <details><summary><h1>FLockLLM</h1><span>what is hosted here</span></summary>
      <div>{cards}</div></details>"""


def _facts(about: Mapping[str, str]) -> str:
    return "".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd>"
        for label, value in about.items()
    )


def _theme() -> gr.themes.Base:
    """Gradio's, in fonts that every machine has: nothing is fetched from elsewhere."""
    sans = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    return gr.themes.Default(
        primary_hue="emerald", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono
    )
