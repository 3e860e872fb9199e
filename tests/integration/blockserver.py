"""A small IPFS node over HTTP, gateway and RPC, that can be told to misbehave."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from flockllm.cid import cid_text, parse_cid
from flockllm.dag import DAG_PB, RAW, UNIXFS
from flockllm.errors import StoreError
from flockllm.store.car import read_car, write_car

MIB = 1 << 20


class Cut(Exception):
    """Raised by a fault: the connection ends here."""


def honest(kind, body):
    """Sends what was asked for."""
    yield from body


def lies(kind, body):
    """Changes one bit in every piece that is large enough to be a block."""
    for piece in body:
        yield bytes([piece[0] ^ 1]) + piece[1:] if len(piece) > 64 else piece


def lies_in_the_middle(kind, body):
    """Two right leaves, then wrong ones."""
    large = 0
    for piece in body:
        large += len(piece) > 1000
        wrong = large > 2 or (kind == "raw" and large)
        yield piece[:-1] + bytes([piece[-1] ^ 1]) if wrong else piece


def dies(kind, body):
    """Closes the connection in the middle of the fourth leaf, and of every leaf asked for alone."""
    leaves = 0
    for piece in body:
        leaves += len(piece) > 1000
        if leaves == 4 or (leaves and kind == "raw"):
            yield piece[: len(piece) // 2]
            raise Cut
        yield piece


def stalls(kind, body):
    """Says nothing more, and keeps the connection, until the server stops."""
    yield next(iter(body))[:1]
    raise TimeoutError


def drips(kind, body):
    """One byte at a time: always alive, never done."""
    for piece in body:
        for byte in piece:
            yield bytes([byte])
            time.sleep(0.02)


def endless(kind, body):
    """Never stops sending."""
    yield from itertools.repeat(bytes(64 * 1024))


def bomb(kind, body):
    """Declares a section of 2⁴⁰ bytes."""
    yield b"\x80\x80\x80\x80\x80\x80\x80\x10" + bytes(100)


def another_file(kind, body):
    """A right stream of other blocks."""
    data = b"something else" * 200_000
    *_, (codec, digest, block) = UNIXFS.blocks(data)
    yield from write_car(codec, digest, UNIXFS.blocks(data)) if kind == "car" else [bytes(block)]


def page(kind, body):
    """A page for people, with status 200."""
    yield b"<!doctype html><title>404</title>" * 10


FAULTS = [
    lies,
    lies_in_the_middle,
    dies,
    stalls,
    drips,
    endless,
    bomb,
    another_file,
    page,
    "drips headers",
    "redirects for ever",
    "redirects http://[::1",
    "redirects http://host:123456/",
    "redirects http://ex\u00e4mple/",
    f"redirects http://{'a' * 70}.invalid/",
    "redirects file:///etc/passwd",
    "HTTP 404",
    "HTTP 429",
    "HTTP 500",
]


class Server(ThreadingHTTPServer):
    """Blocks by digest, on a free port."""

    daemon_threads = True

    def __init__(self, *contents: bytes, fault=honest) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blocks: dict[bytes, bytes] = {}
        self.pinned: set[str] = set()
        self.authorization: str | None = None
        """The header that the RPC asks for."""
        self.renames = False
        """Whether an import is answered with another root."""
        self.fault = fault
        self.asked: list[str] = []
        """`car` or `raw`, for each request that was answered with content."""
        self.sent = 0
        self.stopped = threading.Event()
        for data in contents:
            self.add(data)

    def add(self, data: bytes, profile=UNIXFS) -> bytes:
        """Keeps the blocks of a file, and returns its root's digest."""
        for _, digest, block in profile.blocks(data):
            self.blocks[digest] = bytes(block)
        return digest

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def car(self, codec: int, root: bytes) -> Iterator[bytes]:
        """The DAG below `root`, depth first, each block once."""
        seen: dict[bytes, int] = {}

        def walk(codec, digest):
            if digest in seen:
                return
            seen[digest] = codec
            block = self.blocks[digest]
            if codec == DAG_PB:
                size = UNIXFS.declared_size(block)
                depth = UNIXFS.depth(size)
                for child in UNIXFS.links(block, size, depth):
                    walk(DAG_PB if depth > 1 else RAW, child)

        walk(codec, root)
        yield from write_car(codec, root, ((c, d, self.blocks[d]) for d, c in seen.items()))

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what these tests are about."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        kind = parse_qs(url.query)["format"][0]
        self._content(kind, url.path.removeprefix("/ipfs/"))

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        cid = query.get("arg", "")
        body = self._body()
        if self.server.authorization not in (None, self.headers["Authorization"]):
            return self._reply(401, b"who are you?")
        match url.path.removeprefix("/api/v0/"):
            case "block/get":
                self._content("raw", cid)
            case "dag/export":
                self._content("car", cid)
            case "dag/import":
                start = body.index(b"\r\n\r\n") + 4
                car = body[start : body.rindex(b"\r\n--")]
                for digest, block in read_car([car]):
                    self.server.blocks[digest] = block
                root = cid_text(car[15], car[18:50])
                self.server.pinned.add(root)
                if self.server.renames:
                    root = cid_text(RAW, bytes(32))
                answer = {"Root": {"Cid": {"/": root}, "PinErrorMsg": ""}}
                self._reply(200, json.dumps(answer).encode() + b"\n")
            case "pin/ls" | "pin/rm" if cid not in self.server.pinned:
                self._reply(500, b'{"Message":"path is not pinned"}')
            case "pin/ls":
                self._reply(200, b"{}")
            case "pin/rm":
                self.server.pinned.remove(cid)
                self._reply(200, b"{}")
            case "pin/add" if parse_cid(cid)[1] in self.server.blocks:
                self.server.pinned.add(cid)
                self._reply(200, b"{}")
            case _:
                self._reply(500, b'{"Message":"ipld: could not find the block"}')

    def _content(self, kind: str, cid: str) -> None:
        """A block or a CAR, through the fault."""
        fault = self.server.fault
        if isinstance(fault, str):
            return self._without_content(fault)
        try:
            codec, digest = parse_cid(cid)
            block = self.server.blocks[digest]
        except (StoreError, KeyError):
            return self._reply(404, b"no such block")
        self.server.asked.append(kind)
        body = self.server.car(codec, digest) if kind == "car" else iter([block])
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in fault(kind, body):
                if piece:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.server.sent += len(piece)
            self.wfile.write(b"0\r\n\r\n")
        except TimeoutError:
            self.server.stopped.wait()
        except (Cut, OSError):
            self.close_connection = True

    def _without_content(self, fault: str) -> None:
        match fault.split():
            case ["HTTP", status]:
                self._reply(int(status), b"try again later")
            case ["redirects", where, *_]:
                self.send_response(302)
                again = self.path + "&again=1"
                self.send_header("Location", again if where == "for" else where)
                self.send_header("Content-Length", "0")
                self.end_headers()
            case ["drips", "headers"]:
                with contextlib.suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while not self.server.stopped.wait(0.02):
                        self.wfile.write(b"z")

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass
