"""Peers that speak HTTP: trustless gateways, and a Kubo node's RPC."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flockllm.errors import NotFound, StoreError
from flockllm.store.car import write_car
from flockllm.store.cid import cid_text, codec_of, digest_of
from flockllm.store.dag import DAG_PB, RAW, UNIXFS, Bytes

if TYPE_CHECKING:
    import httpx

STALL = 30.0
"""Seconds without a byte after which a connection is given up."""

SEARCH = "20s"
"""How long a node looks for content among its peers."""

ANSWER_LIMIT = 1 << 16
"""Bytes of an answer that is no content."""


class _Peer:
    """One HTTP address. The client is made when it is needed: it takes 0.1 s to import."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.name = urlsplit(url).netloc.rpartition("@")[2]

    @cached_property
    def _client(self) -> "httpx.Client":
        import httpx

        return httpx.Client(timeout=STALL, follow_redirects=True, max_redirects=3)

    def _answer(
        self,
        method: str,
        path: str,
        limit: int,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str] = {},
        content: Iterable[bytes] | None = None,
    ) -> Iterator[bytes]:
        """The body of an answer as it comes, which is never decompressed."""
        import httpx

        request: dict[str, Any] = {"params": params, "content": content}
        request["headers"] = {"Accept-Encoding": "identity", **headers}
        try:
            with self._client.stream(method, self._url + path, **request) as response:
                if response.status_code != httpx.codes.OK:
                    text = next(response.iter_raw(500), b"").decode(errors="replace")
                    missing = response.status_code in (404, 410) or _says_missing(text)
                    kind = NotFound if missing else StoreError
                    raise kind(f"HTTP {response.status_code}: {text[:200].strip()}")
                for chunk in response.iter_raw():
                    limit -= len(chunk)
                    if limit < 0:
                        raise StoreError("the answer is longer than the content can be")
                    yield chunk
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise StoreError(f"{type(e).__name__}: {e}") from e


class Gateway(_Peer):
    """A read-only trustless gateway (specs.ipfs.tech/http-gateways/trustless-gateway)."""

    def block(self, codec: int, digest: bytes, limit: int) -> bytes:
        """One raw block."""
        return b"".join(self._get(codec, digest, limit, "raw", "application/vnd.ipld.raw"))

    def car(self, codec: int, digest: bytes, limit: int) -> Iterator[bytes]:
        """The DAG in the order of the file."""
        accept = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
        return self._get(codec, digest, limit, "car", accept)

    def _get(self, codec: int, digest: bytes, limit: int, form: str, mime: str) -> Iterator[bytes]:
        path = f"/ipfs/{cid_text(codec, digest)}"
        return self._answer("GET", path, limit, params={"format": form}, headers={"Accept": mime})


class Kubo(_Peer):
    """An IPFS node by its RPC (docs.ipfs.tech/reference/kubo/rpc). Who reaches it, owns it."""

    def block(self, codec: int, digest: bytes, limit: int) -> bytes:
        """One raw block, from the node or from whoever the node finds."""
        return self._call("block/get", codec, digest, limit, timeout=SEARCH)

    def car(self, codec: int, digest: bytes, limit: int) -> Iterator[bytes]:
        """The DAG in the order of the file."""
        return self._answer(
            "POST", "/api/v0/dag/export", limit, params={"arg": cid_text(codec, digest)}
        )

    def put(self, data: Bytes) -> bytes:
        """Imports our own blocks, pinned: the node has no say in how a file is cut."""
        digest, size = digest_of(data), len(data)
        if self.has(digest, size):
            return digest
        codec = codec_of(size)
        boundary = token_hex(16)
        answer = b"".join(
            self._answer(
                "POST",
                "/api/v0/dag/import",
                limit=ANSWER_LIMIT,
                params={"pin-roots": "true", "allow-big-block": "true"},
                headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
                content=_form(boundary, write_car(codec, digest, UNIXFS.blocks(data))),
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
        try:
            self._call(command, codec, digest, ANSWER_LIMIT, type="recursive", timeout=SEARCH)
        except NotFound:
            return False
        return True

    def _call(self, command: str, codec: int, digest: bytes, limit: int, **params: str) -> bytes:
        params["arg"] = cid_text(codec, digest)
        return b"".join(self._answer("POST", f"/api/v0/{command}", limit, params=params))


def _codecs(size: int | None) -> tuple[int, ...]:
    """The codecs that the root of such a file may have."""
    return (RAW, DAG_PB) if size is None else (codec_of(size),)


def _says_missing(text: str) -> bool:
    """Whether a node's error means that it has it not; Kubo and js-ipfs say so in many words."""
    words = ("not found", "not find", "not pinned", "timed out", "deadline exceeded")
    return any(word in text for word in words)


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
