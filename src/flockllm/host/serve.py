"""The server: a gate, the API and the page on one address."""

import logging
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from types import FrameType
from typing import Any, Protocol, Self

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flockllm.errors import InvalidConfig
from flockllm.host.gate import Gate, Keys
from flockllm.host.loading import Model

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a server listens, and for whom."""

    address: str = "127.0.0.1"
    port: int = 7860
    """0 for any that is free."""
    keys: Sequence[str] = ()
    """`KEY` or `NAME:PASSWORD`; without any, everybody who reaches the address may come in."""
    max_bytes: int = 1 << 20
    """Size of a request."""
    page: bool = True
    examples: Sequence[tuple[str, str]] = ()
    """(instruction, input) to begin with."""


class Service(Protocol):
    """What answers under /v1: our own engine (`api.Api`), or vLLM (`vllm.Vllm`)."""

    @property
    def models(self) -> Sequence[Model]:
        """What can be asked; the base model first."""
        ...

    def routes(self) -> list[Route]:
        """Everything under /v1."""
        ...

    def close(self) -> None:
        """Ends all answers at once; called from a signal handler."""
        ...

    def join(self) -> None:
        """Waits until nothing runs any more."""
        ...


class Site:
    """A server that listens from the moment it is made; `run` answers until Ctrl-C.

    As a context manager it answers from a thread of its own.

    Raises:
        InvalidConfig: the address cannot be had.
    """

    def __init__(self, service: Service, settings: Settings) -> None:
        self._socket = _listen(settings.address, settings.port)
        self.address, self.port = settings.address, self._socket.getsockname()[1]
        self.service = service
        own = secrets.token_urlsafe(32)
        app = Starlette(
            routes=[Route("/health", _health), *service.routes()],
            middleware=_middleware(settings, own),
        )
        if settings.page:
            from flockllm.host.page import mount

            mount(app, f"{self.url}/v1", own, service.models, settings.examples)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            limit_concurrency=1000,
        )
        self._server = _Server(config, self.service.close)

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        host = "127.0.0.1" if self.address in ("0.0.0.0", "") else self.address  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def share(self) -> str:
        """Opens Gradio's tunnel to this server, gate and all; returns the public address.

        Raises:
            InvalidConfig: the tunnel cannot be had.
        """
        from gradio.networking import setup_tunnel

        try:
            token = secrets.token_urlsafe(32)
            return setup_tunnel("127.0.0.1", self.port, token, None, None)
        except (OSError, RuntimeError, ValueError) as e:
            raise InvalidConfig(f"no public address to be had: {e}") from e

    def run(self) -> None:
        """Answers until Ctrl-C."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.service.close()
            self._socket.close()

    def __enter__(self) -> Self:
        self._thread = Thread(target=self.run, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.service.close()
        self._server.should_exit = True
        self._thread.join()
        self.service.join()


class _Server(uvicorn.Server):
    """Ends what is being generated first, so that streams do not hold up Ctrl-C."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_exit()
        super().handle_exit(sig, frame)


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _middleware(settings: Settings, own: str) -> list[Middleware]:
    gate: Any = Gate
    layers = [
        Middleware(gate, keys=Keys(settings.keys), own=Keys([own]), max_bytes=settings.max_bytes)
    ]
    if not settings.keys and settings.address in LOOPBACK:
        # Else a page elsewhere could point its own name at 127.0.0.1 and read our answers.
        layers.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"]))
    return layers


def _listen(address: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family)
    except OSError as e:
        raise InvalidConfig(
            f"cannot listen on {address} port {port}: {e.strerror}; choose another with --port"
        ) from e
