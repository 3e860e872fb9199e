"""JSON-RPC to an Ethereum node: calls, batches, and waiting for new heads.

Reads and raw transactions may be sent twice without harm, so every request is repeated while
the node is out of reach or busy.
"""

import itertools
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
from websockets.exceptions import InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from flockllm.errors import ChainError, InvalidConfig

log = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds for one answer."""

RETRIES = (0.1, 0.4, 1.0, 2.0, 4.0)
"""Seconds before each repetition of a request that got no answer."""

BUSY = {429, 502, 503, 504}
"""HTTP statuses after which the same request may succeed."""

POLL = 1.0
"""Seconds between looks at the head where the node cannot push it."""

REDIAL = 30.0
"""Seconds before a node that refused a subscription is asked again."""

Request = tuple[str, Sequence[Any]]
"""A method and its parameters."""


@dataclass(frozen=True)
class Head:
    """The newest block."""

    number: int
    hash: bytes
    timestamp: int
    """Unix seconds."""


class RpcError(ChainError):
    """The node answered with an error. `data` holds what a reverted call returned."""

    def __init__(self, message: str, code: int = 0, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Connection:
    """One node. Sync, for one thread."""

    def __init__(self, url: str, *, heads_url: str | None = None) -> None:
        """Opens nothing yet.

        Args:
            url: http(s):// or ws(s)://.
            heads_url: ws(s):// to subscribe at; by default the same host.
        """
        scheme = urlsplit(url).scheme
        if scheme not in {"http", "https", "ws", "wss"}:
            raise InvalidConfig(f"{url!r} is no URL of a node: http(s):// or ws(s):// is needed")
        self.url = url
        self._heads_url = heads_url or _with_scheme(url, scheme.replace("http", "ws"))
        self._transport = _Http(url) if scheme in {"http", "https"} else _WebSocket(url)
        self._subscription: ClientConnection | None = None
        self._redial_at = 0.0
        self._seen: Head | None = None
        self._ids = itertools.count(1)

    def call(self, method: str, *params: Any) -> Any:
        """The result of one request.

        Raises:
            RpcError: the node answered with an error.
            ChainError: the node is out of reach.
        """
        result = self.batch([(method, params)])[0]
        if isinstance(result, RpcError):
            raise result
        return result

    def batch(self, requests: Sequence[Request]) -> list[Any]:
        """The results of several requests in one turn; an error stands in a result's place."""
        first = next(self._ids)
        bodies = [
            {"jsonrpc": "2.0", "id": first + i, "method": method, "params": list(params)}
            for i, (method, params) in enumerate(requests)
        ]
        for _ in range(len(bodies) - 1):
            next(self._ids)
        # Some providers refuse batches of one.
        answer = self._exchange(json.dumps(bodies if len(bodies) > 1 else bodies[0]))
        answers = answer if isinstance(answer, list) else [answer]
        if len(answers) != len(bodies):  # refused as a whole
            answers = answers[:1] * len(bodies)
        elif len(bodies) > 1:  # "in any order" says the standard
            answers = sorted(answers, key=lambda a: a.get("id") or 0)
        return [_result(a, method) for a, (method, _) in zip(answers, requests, strict=True)]

    @cached_property
    def chain_id(self) -> int:
        """The chain's id (EIP-155)."""
        return int(self.call("eth_chainId"), 16)

    def head(self) -> Head:
        """The newest block."""
        return _head(self.call("eth_getBlockByNumber", "latest", False))

    def block(self, number: int) -> Head:
        """A block by its number."""
        return _head(self.call("eth_getBlockByNumber", hex(number), False))

    def heads(self, timeout: float) -> Head:
        """The newest block, once it is another than this method returned last.

        Pushed by the node where it offers a subscription, else polled. After `timeout` seconds
        without news it returns the same block again.
        """
        end = time.monotonic() + timeout
        while True:
            head = self._pushed(end) or self.head()
            if head != self._seen or time.monotonic() >= end:
                self._seen = head
                return head
            if self._subscription is None:
                time.sleep(max(0.0, min(POLL, end - time.monotonic())))

    def _pushed(self, end: float) -> Head | None:
        """The newest head that was pushed; None where one has to look instead."""
        if self._subscription is None:
            self._subscribe()
            return None
        try:
            message = self._subscription.recv(max(0.0, end - time.monotonic()))
            while True:  # only the newest is of interest
                try:
                    message = self._subscription.recv(0)
                except TimeoutError:
                    return _head(json.loads(message)["params"]["result"])
        except TimeoutError:
            return None  # perhaps the node forgot us
        except (WebSocketException, OSError, KeyError, ValueError) as e:
            log.debug("subscription at %s lost: %s", self._heads_url, e)
            self._subscription.close()
            self._subscription = None
            return None

    def _subscribe(self) -> None:
        if time.monotonic() < self._redial_at:
            return
        try:
            socket = _dial(self._heads_url)
            socket.send('{"jsonrpc":"2.0","id":0,"method":"eth_subscribe","params":["newHeads"]}')
            if "result" not in json.loads(socket.recv(TIMEOUT)):
                socket.close()
                raise OSError("the node refuses subscriptions")
            self._subscription = socket
        except (WebSocketException, OSError, ValueError) as e:
            log.debug("polling, for %s offers no heads: %s", self._heads_url, e)
            self._redial_at = time.monotonic() + REDIAL

    def _exchange(self, body: str) -> Any:
        for pause in (*RETRIES, None):
            try:
                return self._transport.exchange(body)
            except (httpx.TransportError, WebSocketException, OSError, ValueError) as e:
                if pause is None:
                    raise ChainError(
                        f"the chain's node at {self.url} is out of reach ({_short(e)}): "
                        "start it, or give another URL"
                    ) from e
                log.debug("repeating a request to %s after: %s", self.url, e)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Ends the connections; a later call opens them again."""
        self._transport.close()
        if self._subscription:
            self._subscription.close()
            self._subscription = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(url: str, expected_chain_id: int | None = None) -> Connection:
    """A connection to a node that answers, on the chain one meant.

    Raises:
        ChainError: nobody answers, or another chain does.
    """
    connection = Connection(url)
    found = connection.chain_id
    if expected_chain_id not in (None, found):
        connection.close()
        raise ChainError(f"{url} serves chain {found}, not {expected_chain_id}: check the URL")
    return connection


class _Http:
    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.Client(
            timeout=TIMEOUT, headers={"Content-Type": "application/json"}, follow_redirects=False
        )

    def exchange(self, body: str) -> Any:
        response = self._client.post(self._url, content=body)
        if response.status_code in BUSY:
            time.sleep(min(float(response.headers.get("Retry-After") or 0), TIMEOUT))
            raise OSError(f"HTTP {response.status_code}")
        try:
            return response.json()
        except ValueError:
            raise OSError(f"HTTP {response.status_code}, and no JSON") from None

    def close(self) -> None:
        self._client.close()


class _WebSocket:
    def __init__(self, url: str) -> None:
        self._url = url
        self._socket: ClientConnection | None = None

    def exchange(self, body: str) -> Any:
        self._socket = self._socket or _dial(self._url)
        try:
            self._socket.send(body)
            return json.loads(self._socket.recv(TIMEOUT))
        except BaseException:
            self.close()  # a late answer must not be taken for the next one's
            raise

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


def _dial(url: str) -> ClientConnection:
    try:
        # Compression costs more than it saves here; answers with many logs may be large.
        socket = open_websocket(
            url,
            open_timeout=5,
            close_timeout=0.1,
            max_size=2**28,
            compression=None,
            ping_interval=None,  # nobody reads while its owner trains: a lost line shows when used
        )
        return socket.__enter__()  # left by `close`: it lives as long as the `Connection`
    except InvalidURI as e:
        raise InvalidConfig(f"{url!r} is no URL of a node") from e


def _with_scheme(url: str, scheme: str) -> str:
    return urlunsplit(urlsplit(url)._replace(scheme=scheme))


def _result(answer: Any, method: str) -> Any:
    if not isinstance(answer, dict):
        return RpcError(f"{method}: the node's answer is no JSON-RPC")
    if (error := answer.get("error")) is not None:
        if not isinstance(error, dict):
            return RpcError(f"{method}: {error}")
        return RpcError(str(error.get("message", "?")), error.get("code", 0), error.get("data"))
    return answer.get("result")


def _head(block: Any) -> Head:
    number, timestamp = int(block["number"], 16), int(block["timestamp"], 16)
    return Head(number, bytes.fromhex(block["hash"][2:]), timestamp)


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
