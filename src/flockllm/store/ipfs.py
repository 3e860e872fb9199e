"""Peers that speak HTTP: trustless gateways, and a Kubo node's RPC."""

import json
import time
from collections.abc import Iterable, Iterator
from secrets import token_hex
from urllib.parse import urlencode, urlsplit

from flockllm.cid import cid_text, codec_of, digest_of
from flockllm.dag import DAG_PB, RAW, UNIXFS, Bytes
from flockllm.errors import NotFound, StoreError
from flockllm.store.car import write_car
from flockllm.store.wire import Patience, request

SEARCH = "20s"
"""How long a node looks for content among its peers."""

ANSWER_LIMIT = 1 << 16
"""Bytes of an answer that is no content."""


class Gateway:
    """A read-only trustless gateway (specs.ipfs.tech/http-gateways/trustless-gateway)."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.name = _host(url)

    def block(self, codec: int, digest: bytes, limit: int, patience: Patience) -> bytes:
        """One raw block."""
        mime = "application/vnd.ipld.raw"
        return b"".join(self._get(codec, digest, limit, patience, "raw", mime))

    def car(self, codec: int, digest: bytes, limit: int, patience: Patience) -> Iterator[bytes]:
        """The DAG in the order of the file."""
        mime = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
        return self._get(codec, digest, limit, patience, "car", mime)

    def _get(
        self, codec: int, digest: bytes, limit: int, patience: Patience, form: str, mime: str
    ) -> Iterator[bytes]:
        url = f"{self._url}/ipfs/{cid_text(codec, digest)}?format={form}"
        return request("GET", url, limit, patience, {"Accept": mime})


class Kubo:
    """An IPFS node by its RPC (docs.ipfs.tech/reference/kubo/rpc). Who reaches it, owns it."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/api/v0"
        self.name = _host(url)

    def block(self, codec: int, digest: bytes, limit: int, patience: Patience) -> bytes:
        """One raw block, from the node or from whoever the node finds."""
        arguments = {"arg": cid_text(codec, digest), "timeout": SEARCH}
        return b"".join(self._post("block/get", limit, patience, **arguments))

    def car(self, codec: int, digest: bytes, limit: int, patience: Patience) -> Iterator[bytes]:
        """The DAG in the order of the file."""
        return self._post("dag/export", limit, patience, arg=cid_text(codec, digest))

    def put(self, data: Bytes) -> bytes:
        """Imports our own blocks, pinned: the node has no say in how a file is cut."""
        digest, size = digest_of(data), len(data)
        if self.has(digest, size):
            return digest
        codec = codec_of(size)
        boundary = token_hex(16)
        answer = b"".join(
            request(
                "POST",
                f"{self._url}/dag/import?pin-roots=true&allow-big-block=true",
                ANSWER_LIMIT,
                _patience(size),
                {"Content-Type": f"multipart/form-data; boundary={boundary}"},
                _form(boundary, write_car(codec, digest, UNIXFS.blocks(data))),
            )
        )
        if _imported(answer) != cid_text(codec, digest):
            raise StoreError(
                f"{self.name} did not take {cid_text(codec, digest)}: {answer[:200]!r}"
            )
        return digest

    def has(self, digest: bytes, size: int | None = None) -> bool:
        """Whether the node has it all, pinned."""
        return any(self._done("pin/ls", codec, digest) for codec in _codecs(size))

    def pin(self, digest: bytes, size: int | None = None) -> None:
        """Pins, which fetches what the node lacks."""
        if not any(self._done("pin/add", codec, digest) for codec in _codecs(size)):
            raise NotFound(f"{self.name} found no content {digest.hex()} to pin")

    def unpin(self, digest: bytes, size: int | None = None) -> None:
        """Leaves it to the node's own garbage collection."""
        for codec in _codecs(size):
            self._done("pin/rm", codec, digest)

    def _done(self, command: str, codec: int, digest: bytes) -> bool:
        """Whether the node did as told; False where it lacks what it would need."""
        arguments = {"arg": cid_text(codec, digest), "type": "recursive", "timeout": SEARCH}
        try:
            for _ in self._post(command, ANSWER_LIMIT, _patience(0), **arguments):
                pass
        except NotFound:
            return False
        return True

    def _post(
        self, command: str, limit: int, patience: Patience, **arguments: str
    ) -> Iterator[bytes]:
        url = f"{self._url}/{command}?{urlencode(arguments)}"
        return request("POST", url, limit, patience, content=b"")


def _host(url: str) -> str:
    """What may be shown of a URL: not its password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _patience(size: int) -> Patience:
    """With our own node: a minute, and as long as so many bytes take at 50 kB/s."""
    seconds = 60 + size / 50_000
    return Patience(seconds, time.monotonic() + seconds)


def _codecs(size: int | None) -> tuple[int, ...]:
    """The codecs that the root of such a file may have."""
    return (RAW, DAG_PB) if size is None else (codec_of(size),)


def _imported(answer: bytes) -> str | None:
    """The root that `dag import` names as imported and pinned."""
    try:
        root = json.loads(answer.splitlines()[0])["Root"]
        return None if root["PinErrorMsg"] else root["Cid"]["/"]
    except (ValueError, LookupError, TypeError):
        return None


def _form(boundary: str, file: Iterable[bytes]) -> Iterator[bytes]:
    """A form with one file, as it is read; RFC 7578."""
    disposition = 'Content-Disposition: form-data; name="file"; filename="file.car"'
    mime = "Content-Type: application/vnd.ipld.car"
    yield f"--{boundary}\r\n{disposition}\r\n{mime}\r\n\r\n".encode()
    yield from file
    yield f"\r\n--{boundary}--\r\n".encode()
