"""The OpenAI-compatible API: models, chat completions, completions."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Self

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flockllm.host import wire
from flockllm.host.engine import Busy, Engine, Piece
from flockllm.host.loading import Loaded, Model
from flockllm.host.wire import Body, Refused, Request, Shape

BODY_SECONDS = 30
"""How long a request may take to arrive."""

RETRY_SECONDS = 2
"""When to come back to a server that is busy."""


Pieces = AsyncGenerator[tuple[int, Piece]]
"""(choice, piece) as they come."""


@dataclass(frozen=True)
class Api:
    """The routes, on an engine and what it has loaded."""

    loaded: Loaded
    engine: Engine
    started: int

    @classmethod
    def start(cls, loaded: Loaded, *, max_rows: int = 16, max_waiting: int = 64) -> Self:
        """The API with an engine of its own; the arguments are `Engine`'s."""
        engine = Engine(
            loaded.model,
            loaded.switch,
            loaded.tokenizer,
            loaded.ends,
            max_rows=max_rows,
            max_waiting=max_waiting,
        )
        return cls(loaded, engine, int(time.time()))

    @property
    def models(self) -> Sequence[Model]:
        """What can be asked; the base model first."""
        return list(self.loaded.models.values())

    def close(self) -> None:
        """Ends all answers."""
        self.engine.close()

    def join(self) -> None:
        """Waits until nothing runs any more."""
        self.engine.join()

    def routes(self) -> list[Route]:
        """What a Starlette application mounts."""
        return [
            Route("/v1/models", self._handled(self.list_models)),
            Route("/v1/models/{name:path}", self._handled(self.show_model)),
            Route("/v1/chat/completions", self._handled(self.chat), methods=["POST"]),
            Route("/v1/completions", self._handled(self.complete), methods=["POST"]),
            Route("/v1/{rest:path}", self._handled(self.unknown), methods=["GET", "POST"]),
        ]

    @staticmethod
    def _handled(handler: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        async def handle(request: HttpRequest) -> Response:
            try:
                response: Response = await handler(request)
            except Refused as e:
                response = JSONResponse(e.body, e.status, e.headers)
            return response

        return handle

    async def list_models(self, _: HttpRequest) -> Response:
        """The base model and each adapter."""
        models = [self._model(model) for model in self.models]
        return JSONResponse({"object": "list", "data": models})

    async def show_model(self, request: HttpRequest) -> Response:
        """One model."""
        name = request.path_params["name"]
        if name not in self.loaded.models:
            raise Refused(404, "model_not_found", f"model {name!r} is not hosted here", "model")
        return JSONResponse(self._model(self.loaded.models[name]))

    async def unknown(self, request: HttpRequest) -> Response:
        """Everything else of OpenAI's API."""
        raise Refused(404, "not_found", f"{request.method} {request.url.path} is not served here")

    async def chat(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        body = wire.parse(await _body(http))
        request = wire.chat_request(body, self.loaded, self.engine.max_rows)
        if request.stream:
            return self._stream(request, "chat.completion.chunk", wire.chat_delta)
        return await self._whole(http, request, "chat.completion", wire.chat_choice)

    async def complete(self, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        body = wire.parse(await _body(http))
        request = wire.completion_request(body, self.loaded, self.engine.max_rows)
        if request.stream:
            return self._stream(request, "text_completion", wire.text_choice)
        return await self._whole(http, request, "text_completion", wire.text_choice)

    async def _whole(
        self, http: HttpRequest, request: Request, kind: str, shape: Shape
    ) -> Response:
        texts = [""] * len(request.asks)
        finish: list[str] = [""] * len(request.asks)
        counts = [0] * len(request.asks)

        async def collect() -> None:
            async with aclosing(self._pieces(request)) as pieces:
                async for i, piece in pieces:
                    texts[i] += piece.text
                    finish[i], counts[i] = piece.finish, piece.tokens

        await _unless_gone(http, collect())
        choices = [shape(i, text, finish[i]) for i, text in enumerate(texts)]
        head = self._head(request, kind)
        used = wire.usage(request.prompt_tokens, sum(counts))
        return JSONResponse({**head, "choices": choices, "usage": used})

    def _stream(self, request: Request, kind: str, shape: Shape) -> Response:
        head = self._head(request, kind)
        pieces = self._pieces(request)  # refused here, before the answer's status is sent

        async def events() -> AsyncIterator[str]:
            counts = [0] * len(request.asks)
            if shape is wire.chat_delta:
                for i in range(len(request.asks)):
                    first = shape(i, "", None) | {"delta": {"role": "assistant", "content": ""}}
                    yield _event({**head, "choices": [first]})
            try:
                async with aclosing(pieces):
                    async for i, piece in pieces:
                        counts[i] = piece.tokens
                        choice = shape(i, piece.text, piece.finish or None)
                        yield _event({**head, "choices": [choice]})
            except Refused as e:
                yield _event(e.body)
                return
            if request.usage:
                used = wire.usage(request.prompt_tokens, sum(counts))
                yield _event({**head, "choices": [], "usage": used})
            yield "data: [DONE]\n\n"

        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    def _pieces(self, request: Request) -> Pieces:
        """Submits the request at once; then its answers' pieces as they come.

        However the iteration ends (an answer complete, a client gone), nothing goes on behind it.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

        def emit(index: int, piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(queue.put_nowait, (index, piece))

        try:
            answers = self.engine.submit(request.asks, emit)
        except Busy:
            raise Refused(
                429, "busy", "too many requests wait; try again", Retry_After=str(RETRY_SECONDS)
            ) from None

        async def pieces() -> Pieces:
            open_ = len(answers)
            try:
                while open_:
                    index, piece = await queue.get()
                    if piece.finish in _BROKEN:
                        raise Refused(*_BROKEN[piece.finish])
                    open_ -= bool(piece.finish)
                    yield index, piece
            finally:
                for answer in answers:
                    answer.cancel()

        return pieces()

    def _model(self, model: Model) -> Body:
        return {
            "id": model.name,
            "object": "model",
            "created": self.started,
            "owned_by": "flockllm",
            "context_length": self.loaded.context,
            "about": dict(model.about),
        }

    @staticmethod
    def _head(request: Request, kind: str) -> Body:
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": request.model.name,
        }


_BROKEN = {
    "closed": (503, "shutting_down", "the server is shutting down"),
    "error": (500, "generation_failed", "the model failed on this request; see the server's log"),
}


def _event(body: Body) -> str:
    return f"data: {json.dumps(body)}\n\n"


async def _body(http: HttpRequest) -> bytes:
    # A page elsewhere can make a browser send a form or plain text to us, but not JSON.
    if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "unsupported_media_type", "send Content-Type: application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await http.body()
    except ClientDisconnect:  # by the client, or by the gate
        raise Refused(413, "request_too_large", "the request is too large") from None
    except TimeoutError:
        raise Refused(408, "timeout", "the request did not arrive in time") from None


async def _unless_gone(http: HttpRequest, work: Any) -> None:
    """Awaits work, and cancels it when the client disconnects."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for future in (task, gone):
            future.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
