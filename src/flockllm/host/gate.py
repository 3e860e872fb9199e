"""Stands in front of everything: who may come in, how often they may try, how much they may send.

A key is a line of the key file: `KEY`, for programs (`Authorization: Bearer KEY`), or
`NAME:PASSWORD`, for people (the browser asks for them). Both are compared in constant time, and
an address that fails again and again has to wait, twice as long each time.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flockllm.errors import InvalidConfig
from flockllm.host.wire import Refused

OPEN_PATHS = ("/health",)
"""What a supervisor may ask without a key."""

FREE_FAILURES = 5
"""Wrong keys from one address before it has to wait."""

LONGEST_WAIT = 300.0
"""Seconds."""

MAX_ADDRESSES = 10_000
"""Addresses that are remembered; the oldest is forgotten first."""


class Keys:
    """What opens the gate, as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def open(self, authorization: str) -> bool:
        """Whether an Authorization header has one of them; takes the same time for any other."""
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        given = _digest(value.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def read_keys(path: Path) -> list[str]:
    """The keys of a key file: a line each, `#` begins a comment line.

    Raises:
        InvalidConfig: it cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidConfig(f"key file {path}: {e}") from e
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InvalidConfig(f"key file {path}: no KEY or NAME:PASSWORD in it")
    return found


class Failures:
    """Wrong keys by address, and until when each address has to wait."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._by_address: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Seconds that an address has to wait yet."""
        _, until = self._by_address.get(address, (0, 0.0))
        return max(0.0, until - self._now())

    def add(self, address: str) -> None:
        """One more wrong key."""
        count = self._by_address.pop(address, (0, 0.0))[0] + 1
        over = count - FREE_FAILURES
        seconds = min(LONGEST_WAIT, 2.0 ** min(over, 30)) if over >= 0 else 0.0
        self._by_address[address] = (count, self._now() + seconds)
        if len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)

    def forget(self, address: str) -> None:
        """The right key came."""
        self._by_address.pop(address, None)


class Gate:
    """ASGI middleware: authentication, and a limit on the size of requests.

    Args:
        app: what is behind it.
        keys: let people and programs in; without any, everybody may come in.
        own: the page's own key for the API, never slowed down by other people's failures.
        max_bytes: size of a request.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, own: Keys, max_bytes: int) -> None:
        self._app, self._keys, self._own, self._max_bytes = app, keys, own, max_bytes
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers itself what may not come in."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            if scope["path"] not in OPEN_PATHS:
                self._authenticate(scope, headers.get("authorization", ""))
            self._check_size(
                int(length) if (length := headers.get("content-length", "0")).isdigit() else 0
            )
        except Refused as refused:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await _answer(refused, send)
        await self._app(scope, self._counted(receive), _protected(send))

    def _authenticate(self, scope: Scope, authorization: str) -> None:
        if not self._keys or self._own.open(authorization):
            return
        address = (scope.get("client") or ("", 0))[0]
        if wait := self._failures.wait(address):
            seconds = str(int(wait) + 1)
            raise Refused(
                429,
                "too_many_failures",
                f"too many wrong keys; wait {seconds} s",
                Retry_After=seconds,
            )
        if self._keys.open(authorization):
            return self._failures.forget(address)
        if authorization:
            self._failures.add(address)
        scheme = "Bearer" if scope["path"].startswith("/v1") else 'Basic realm="FLockLLM"'
        message = "wrong key" if authorization else "a key is needed: Authorization: Bearer KEY"
        raise Refused(401, "invalid_api_key", message, WWW_Authenticate=scheme)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise Refused(413, "request_too_large", f"a request may have {self._max_bytes} bytes")

    def _counted(self, receive: Receive) -> Receive:
        """Cuts off a request that is longer than it may be and did not say so."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return {"type": "http.disconnect"} if seen > self._max_bytes else message

        return counted


def _protected(send: Send) -> Send:
    """Adds headers that keep the browser from loading anything of other sites into the page, and
    other sites from showing it as a part of theirs."""

    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_PROTECTION]}
        await send(message)

    return protected


_PROTECTION = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


async def _answer(refused: Refused, send: Send) -> None:
    body = json.dumps(refused.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **refused.headers,
    }
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
