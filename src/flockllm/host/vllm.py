"""vLLM as the engine, where a GPU and vLLM are there: a process of its own behind our gate.

`vllm serve` gets the base model, every adapter as a folder in PEFT's format, and our prompt
template. Requests to /v1 are passed on; the page and the gate do not know the difference.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from safetensors.numpy import save_file
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flockllm.errors import ModelError
from flockllm.host import wire
from flockllm.host.loading import Model
from flockllm.host.prompts import OWN, template_text
from flockllm.host.sources import WEIGHTS, Hosted
from flockllm.train.base import locate

PASSED_ON = ("content-type", "accept")
START_SECONDS = 1800
"""A large model takes long to load."""


def command(
    hosted: Hosted,
    folder: Path,
    port: int,
    *,
    load_8bit: bool = False,
    load_4bit: bool = False,
    context: int = 0,
) -> list[str]:
    """The command line of `vllm serve`; writes adapters and template to `folder`."""
    words = ["vllm", "serve", locate(hosted.base), "--served-model-name", base_name(hosted)]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    if hosted.revision:
        words += ["--revision", hosted.revision]
    if load_8bit or load_4bit:  # vLLM has bitsandbytes in 4 bits, and 8 bits as FP8
        words += ["--quantization", "bitsandbytes" if load_4bit else "fp8"]
    if context:
        words += ["--max-model-len", str(context)]
    if hosted.template != OWN:
        path = Path(hosted.template)
        template = path.read_text() if path.suffix == ".jinja" else template_text(hosted.template)
        (folder / "template.jinja").write_text(template)
        words += ["--chat-template", str(folder / "template.jinja")]
    if hosted.tuned:
        words += ["--enable-lora", "--max-loras", str(len(hosted.tuned))]
        words += ["--max-lora-rank", str(_rank(max(t.config.r for t in hosted.tuned)))]
        words += ["--lora-modules"]
        for number, tuned in enumerate(hosted.tuned):
            at = folder / str(number)
            at.mkdir()
            tuned.config.save_pretrained(str(at))
            save_file(dict(tuned.tensors), at / WEIGHTS)
            words.append(f"{tuned.name}={at}")
    return words


def base_name(hosted: Hosted) -> str:
    """What the base model is called."""
    folder = Path(hosted.base).expanduser()
    return folder.resolve().name if folder.is_dir() else hosted.base


class Remote:
    """An OpenAI-compatible server elsewhere, served as if it were ours."""

    def __init__(self, url: str, key: str, models: Sequence[Model]) -> None:
        self.models: Sequence[Model] = models
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(10, read=600),
            trust_env=False,
        )

    def routes(self) -> list[Route]:
        """Everything under /v1."""
        return [Route("/v1/{path:path}", self._forward, methods=["GET", "POST"])]

    def close(self) -> None:
        """Nothing of ours runs there."""

    def join(self) -> None:
        """Nothing to wait for."""

    async def _forward(self, request: Request) -> Response:
        headers = {n: request.headers[n] for n in PASSED_ON if n in request.headers}
        try:
            content = _translated(await request.body())
            answer = await self._client.send(
                self._client.build_request(
                    request.method, request.url.path, content=content, headers=headers
                ),
                stream=True,
            )
        except wire.Refused as e:
            return JSONResponse(e.body, e.status)
        except httpx.TransportError as e:
            gone = wire.Refused(503, "engine_unreachable", f"the engine is out of reach: {e}")
            return JSONResponse(gone.body, gone.status)
        return StreamingResponse(
            answer.aiter_raw(),
            answer.status_code,
            {n: v for n, v in answer.headers.items() if n in ("content-type", "retry-after")},
            background=BackgroundTask(answer.aclose),
        )


class Vllm(Remote):
    """`vllm serve`, started here and ended with us.

    Raises:
        ModelError: vLLM is not installed, or ends before it answers.
    """

    def __init__(self, hosted: Hosted, **options: Any) -> None:
        if shutil.which("vllm") is None:
            raise ModelError("--engine vllm needs vLLM and a GPU: pip install vllm")
        self._folder = tempfile.TemporaryDirectory(prefix="flockllm-vllm-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        key = secrets.token_urlsafe(32)
        words = command(hosted, Path(self._folder.name), port, **options)
        self._process = subprocess.Popen(words, env={**os.environ, "VLLM_API_KEY": key})
        self._wait(f"http://127.0.0.1:{port}/health")
        about = [(base_name(hosted), {}), *((t.name, t.about) for t in hosted.tuned)]
        models = [Model(name, i, facts) for i, (name, facts) in enumerate(about)]
        super().__init__(f"http://127.0.0.1:{port}", key, models)

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()

    def join(self) -> None:
        """Waits for its end."""
        self._process.wait()
        self._folder.cleanup()

    def _wait(self, url: str) -> None:
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            try:
                if httpx.get(url, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        self._process.kill()
        raise ModelError(f"vllm serve did not start (exit code {self._process.wait()}); see above")


def _translated(content: bytes) -> bytes:
    """Our own fields in vLLM's words: `context` is for the template; it has no such beam search."""
    if not content:
        return content
    body = wire.parse(content)
    if context := body.pop("context", ""):
        body["chat_template_kwargs"] = {"context": context}
    body.pop("beams", None)
    if not body.get("top_k"):
        body.pop("top_k", None)
    return json.dumps(body).encode()


def _rank(highest: int) -> int:
    """vLLM takes a few ranks only; the next one that it does."""
    return next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= highest), highest)
