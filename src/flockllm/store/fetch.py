"""Content from people who need not be honest, awake or fast.

Every block is checked against the digest that named it before it is written, so a file grows of
right bytes only: it goes on after a crash, from another source, or next to another process that
fetches the same, and nothing has to be remembered but the file itself.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from flockllm.dag import DAG_PB, RAW, UNIXFS
from flockllm.errors import NotFound, StoreError
from flockllm.store.base import Progress
from flockllm.store.car import read_car
from flockllm.store.local import LocalStore, check_size, explained
from flockllm.store.wire import Patience

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that one block of 1 MiB may take before the next source is asked."""

PAUSES = (0.5, 2.0, 8.0)
"""Seconds between one round of asking everybody and the next."""


class Source(Protocol):
    """Somebody who may have blocks. What they answer is checked here, by nobody else."""

    name: str

    def block(self, codec: int, digest: bytes, limit: int, patience: Patience) -> bytes:
        """One block, of at most `limit` bytes; NotFound or StoreError otherwise."""

    def car(
        self, codec: int, digest: bytes, limit: int, patience: Patience
    ) -> Iterator[bytes] | None:
        """A whole DAG as a CAR of at most `limit` bytes; None where that is not on offer."""


class _Refused(StoreError):
    """What is wrong with content that its digest vouches for: no other source can have better."""


def fetch(
    store: LocalStore,
    sources: Sequence[Source],
    digest: bytes,
    size: int | None,
    limit: int,
    *,
    seconds: float,
    patience: float = PATIENCE,
    progress: Progress | None = None,
) -> int:
    """Brings content into `store` and returns its size. Arguments as in `Store.get`.

    Raises:
        NotFound: every source answered that it has it not.
        StoreError: it is too large, or no source gave it in time; the message says why of each.
    """
    everybody = _Everybody(sources, time.monotonic() + seconds, patience)
    if size is None:
        size = everybody.asked(lambda one: one.size(digest))
    check_size(size, limit)
    with explained(f"cannot write to {store.folder}"):
        path = store.unfinished(digest, size)
        with _Download(path, digest, size, progress) as download:
            everybody.asked(download.fill)
        store.finish(path, digest, size)
    return size


class _Everybody:
    """The sources in turn, until one does what it is asked or the time is over."""

    def __init__(self, sources: Sequence[Source], deadline: float, patience: float) -> None:
        self._sources = sources
        self._deadline = deadline
        self._patience = patience

    def asked(self, act: Callable[["_One"], T]) -> T:
        for pause in (*PAUSES, None):
            reasons: list[tuple[str, StoreError]] = []
            for i, source in enumerate(self._sources):
                # A slow source gets its share of the time that is left, not that of the next.
                share = self._left() / (len(self._sources) - i)
                try:
                    until = time.monotonic() + share
                    return act(_One(source, Patience(self._patience, until)))
                except _Refused:
                    raise
                except StoreError as e:
                    log.info("%s: %s", source.name, e)
                    reasons.append((source.name, e))
            said = "; ".join(f"{name}: {e}" for name, e in reasons)
            if all(isinstance(e, NotFound) for _, e in reasons):
                raise NotFound(f"nobody has it: {said}")
            if pause is None or self._left() <= pause:
                break
            time.sleep(pause)
        raise StoreError(f"nobody could give it: {said}")

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


class _One:
    """A source whose answers are checked, and waited for only so long."""

    def __init__(self, source: Source, patience: Patience) -> None:
        self._source = source
        self._patience = patience

    def block(self, codec: int, digest: bytes) -> bytes:
        """A block that is what its digest says."""
        self._patience.renew()
        block = self._source.block(codec, digest, UNIXFS.leaf, self._patience)
        if hashlib.sha256(block).digest() != digest:
            raise StoreError(f"gave another block for {digest.hex()}")
        return block

    def blocks(self, digest: bytes, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Digests and blocks of the DAG of a file, as many as come; each is what it says."""
        self._patience.renew()
        limit = UNIXFS.total(size) + (1 << 16) + size // 1000  # headers and CIDs stand between
        for block in read_car(self._source.car(DAG_PB, digest, limit, self._patience) or ()):
            yield block
            self._patience.renew()

    def size(self, digest: bytes) -> int:
        """The size of a file, from its root alone."""
        try:
            root = self.block(RAW, digest)
        except NotFound:
            root = self.block(DAG_PB, digest)
        size = UNIXFS.declared_size(root)
        return len(root) if size is None else size


class _Download:
    """A file that grows of right blocks, in any order, and knows which it still wants."""

    def __init__(self, path: Path, digest: bytes, size: int, progress: Progress | None) -> None:
        self._digest = digest
        self._size = size
        self._progress = progress
        self._here = 0
        self._wanted: dict[bytes, list[tuple[int, int, int]]] = {}
        """By digest: size, depth and offset of each place where the block belongs."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        found = os.fstat(self._descriptor).st_size
        self._resumed = found > 0
        if found > size:
            os.ftruncate(self._descriptor, size)
        self._want(digest, size, UNIXFS.depth(size), 0)

    def __enter__(self) -> "_Download":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fill(self, source: _One) -> None:
        """Takes all that is wanted from `source`, nodes first: they tell what is here already."""
        while nodes := [digest for digest, places in self._wanted.items() if places[0][1]]:
            for digest in nodes:
                self._accept(digest, source.block(DAG_PB, digest))

        if UNIXFS.depth(self._size) and 2 * self._here <= self._size:
            try:
                for digest, block in source.blocks(self._digest, self._size):
                    self._accept(digest, block)
                    if not self._wanted:
                        return
            except _Refused:
                raise
            except StoreError as e:
                log.info("asking for single blocks: %s", e)

        while self._wanted:
            digest = next(iter(self._wanted))
            self._accept(digest, source.block(RAW, digest))

    def _accept(self, digest: bytes, block: bytes) -> None:
        """Puts a block, which is what its digest says, wherever it belongs."""
        for size, depth, offset in self._wanted.pop(digest, ()):
            if depth:
                try:
                    children = UNIXFS.links(block, size, depth)
                except StoreError as e:
                    raise _Refused(str(e)) from e
                for child, part in zip(children, UNIXFS.children(size, depth), strict=True):
                    self._want(child, part, depth - 1, offset)
                    offset += part
            elif len(block) != size:
                raise _Refused(f"a leaf of {len(block)} bytes where {size} belong")
            else:
                _write_all(self._descriptor, block, offset)
                self._count(size)

    def _want(self, digest: bytes, size: int, depth: int, offset: int) -> None:
        if depth == 0 and self._resumed:
            found = os.pread(self._descriptor, size, offset)
            if hashlib.sha256(found).digest() == digest:
                return self._count(size)
        self._wanted.setdefault(digest, []).append((size, depth, offset))

    def _count(self, size: int) -> None:
        self._here += size
        if self._progress:
            self._progress(self._here, self._size)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
