"""HTTP with peers who may do anything: every wait ends, and nothing longer than agreed is read."""

import atexit
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore

from flockllm.errors import NotFound, StoreError

REDIRECTS = 3
"""How often a request may be sent elsewhere."""

BROKEN = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


class Patience:
    """How long a peer is waited for: so long for each block, and never past a moment."""

    def __init__(self, each: float, until: float) -> None:
        self._each = each
        self._until = until
        self.renew()

    def renew(self) -> None:
        """Begins the wait for another block."""
        self._ends = min(time.monotonic() + self._each, self._until)

    def left(self) -> float:
        """Seconds until the wait ends.

        Raises:
            StoreError: it has ended.
        """
        left = self._ends - time.monotonic()
        if left <= 0:
            raise StoreError(f"no block within {self._each:.0f} s, or the time was over")
        return left


def request(
    method: str,
    url: str,
    limit: int,
    patience: Patience,
    headers: dict[str, str] | None = None,
    content: Iterator[bytes] | bytes | None = None,
) -> Iterator[bytes]:
    """The body of the answer to a request, as it comes; it is never decompressed.

    Raises:
        NotFound: the peer says that it has it not.
        StoreError: it says something else than 200, more than `limit` bytes, or nothing in time.
    """
    try:
        for _ in range(1 + REDIRECTS):
            host, sent = _authorized(url, {"Accept-Encoding": "identity", **(headers or {})})
            # httpcore hands these on as they are, and `_Stream` asks its patience at every wait.
            timeout: dict[str, Any] = dict.fromkeys(("connect", "read", "write"), patience)
            timeout["pool"] = patience.left()
            pool = _pool(_proxy(host))
            with pool.stream(
                method, host, headers=sent, content=content, extensions={"timeout": timeout}
            ) as response:
                elsewhere = dict(response.headers).get(b"location")
                if response.status in (301, 302, 303, 307, 308) and elsewhere and not content:
                    url = _redirected(url, elsewhere.decode("latin-1"))
                    continue
                body = response.iter_stream()
                if response.status != 200:
                    raise _refusal(response.status, next(body, b""))
                for chunk in body:
                    limit -= len(chunk)
                    if limit < 0:
                        raise StoreError("the answer is longer than the content can be")
                    yield chunk
                return
        raise StoreError(f"sends from one address to another, lastly to {url}")
    except BROKEN as e:
        raise StoreError(f"{type(e).__name__}: {e}" if str(e) else type(e).__name__) from e


def _redirected(url: str, elsewhere: str) -> str:
    """Where a peer sends us, if that is a place."""
    try:
        target = urlsplit(urljoin(url, elsewhere))
        if target.scheme in ("http", "https") and target.hostname and (target.port or 1) > 0:
            return target.geturl().encode("ascii").decode()
    except ValueError:
        pass
    raise StoreError(f"sends us to {elsewhere[:200]!r}")


def _authorized(url: str, headers: dict[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """A URL without name and password, which go into a header (RFC 7617)."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {b64encode(unquote(user).encode()).decode()}"
    return parts._replace(netloc=host).geturl(), list(headers.items())


def _refusal(status: int, text: bytes) -> StoreError:
    """What an answer without content says. Kubo and js-ipfs say 500 and one of many words."""
    said = text[:200].decode(errors="replace").strip()
    words = ("not found", "not find", "not pinned", "timed out", "deadline exceeded")
    missing = status in (404, 410) or any(word in said for word in words)
    return (NotFound if missing else StoreError)(f"HTTP {status}: {said}")


def _proxy(url: str) -> str | None:
    """The proxy that the environment prescribes for a URL."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


@cache
def _pool(proxy: str | None) -> httpcore.ConnectionPool:
    """The connections of this process, which are used again and again."""
    options: dict[str, Any] = {
        "ssl_context": httpcore.default_ssl_context(),
        "max_connections": 100,
        "keepalive_expiry": 30.0,
        "network_backend": _Backend(),
    }
    pool = httpcore.HTTPProxy(proxy, **options) if proxy else httpcore.ConnectionPool(**options)
    atexit.register(pool.close)
    return pool


class _Backend(httpcore.NetworkBackend):
    """TCP whose timeouts may be a `Patience`."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Any = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> "_Stream":
        backend = httpcore.SyncBackend()
        failure: Exception = httpcore.ConnectError(f"no address of {host}")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            raise httpcore.ConnectError(f"{host}: {e}") from e
        for *_, address in found:
            try:
                seconds = _seconds(timeout)
                return _Stream(
                    backend.connect_tcp(
                        str(address[0]), port, seconds, local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                failure = e
        raise failure


class _Stream(httpcore.NetworkStream):
    """A connection that asks its patience before every wait."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        return self._stream.read(max_bytes, _seconds(timeout))

    def write(self, buffer: bytes, timeout: Any = None) -> None:
        self._stream.write(buffer, _seconds(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Any = None
    ) -> "_Stream":
        seconds = _seconds(timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _seconds(timeout: Patience | float | None) -> float | None:
    return timeout.left() if isinstance(timeout, Patience) else timeout
