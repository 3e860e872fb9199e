"""A directory with one file for each content, named by its CID.

Several processes may share it, and any of them may be killed at any moment: a file appears under
its name complete and synced, or not at all. Names are CIDs that we made, never a stranger's.
"""

import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from flockllm.cid import cid_of, cid_text, digest_of, parse_cid
from flockllm.dag import DAG_PB, RAW, UNIXFS, Bytes
from flockllm.errors import NotFound, StoreError
from flockllm.store.base import Progress

log = logging.getLogger(__name__)

STALE = 86_400.0
"""Seconds after which an unfinished file belongs to nobody."""


class LocalStore:
    """The content in `folder`; made if it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pins = folder / "pins"
        self._unfinished = folder / "unfinished"
        with explained(f"cannot use {folder} as a store"):
            for path in (folder, self._pins, self._unfinished):
                path.mkdir(parents=True, exist_ok=True)
        self._sweep(STALE)

    def put(self, data: Bytes) -> bytes:
        """Keeps `data`; what is there and intact is not written again."""
        digest, size = digest_of(data), len(data)
        path = self.folder / cid_of(digest, size)
        with suppress(StoreError):
            self.get(digest, size, size)
            with suppress(OSError):
                os.utime(path)  # new again for `collect`
            return digest

        unfinished = self._unfinished / f"{path.name}.{token_hex(8)}"
        with explained(f"cannot write to {self.folder}"):
            try:
                with unfinished.open("xb") as file:
                    file.write(data)
                self.finish(unfinished, digest, size)
            finally:
                unfinished.unlink(missing_ok=True)
        return digest

    def get(
        self,
        digest: bytes,
        size: int | None,
        limit: int,
        *,
        seconds: float = 300,
        progress: Progress | None = None,
    ) -> bytes:
        """Reads and checks. A digest without size is a tree if it is here as one."""
        check_size(size, limit)
        for path in self._candidates(digest, size):
            with suppress(NotFound), explained(f"cannot read {path}"):
                data = _read(path, size, limit)
                if digest_of(data) != digest:
                    raise StoreError(f"{path} was altered: remove it, and put or fetch it again")
                if size is None and _is_leaf(path) and UNIXFS.declared_size(data) is not None:
                    continue  # the root of a tree that is not here
                return data
        raise NotFound(f"{self.folder} has no content {digest.hex()}")

    def has(self, digest: bytes, size: int | None = None) -> bool:
        """Whether a file of that name, and size, is there."""
        for path in self._candidates(digest, size):
            with suppress(NotFound), explained(f"cannot read {path}"):
                return size in (None, path.lstat().st_size)
        return False

    def pin(self, digest: bytes, size: int | None = None) -> None:
        """Keeps the content, here or still to come, through `collect`."""
        with explained(f"cannot write to {self.folder}"):
            for path in self._candidates(digest, size):
                (self._pins / path.name).touch()

    def unpin(self, digest: bytes, size: int | None = None) -> None:
        """Leaves the content to `collect`."""
        with explained(f"cannot write to {self.folder}"):
            for path in self._candidates(digest, size):
                (self._pins / path.name).unlink(missing_ok=True)

    def collect(self, keep: Iterable[bytes], younger: float = 3600) -> list[str]:
        """Removes content that is neither pinned nor in `keep`, and returns its CIDs.

        Args:
            keep: digests that the chain, or anybody else, still names.
            younger: content put or fetched within so many seconds stays: it may be named soon.
        """
        named = set(keep)
        removed = []
        with explained(f"cannot clean up {self.folder}"):
            pinned = {path.name for path in self._pins.iterdir()}
            for path, (_, digest) in self._contents():
                if digest not in named and path.name not in pinned and _age(path) >= younger:
                    path.unlink(missing_ok=True)
                    removed.append(path.name)
        self._sweep(younger)
        return removed

    def unfinished(self, digest: bytes, size: int) -> Path:
        """Where a download grows; the same for every process, as all write the same bytes."""
        return self._unfinished / cid_of(digest, size)

    def finish(self, unfinished: Path, digest: bytes, size: int) -> None:
        """Gives a complete file its name, such that a crash leaves all of it or nothing."""
        path = self.folder / cid_of(digest, size)
        try:
            _sync(unfinished)
            unfinished.replace(path)
        except FileNotFoundError:
            if not path.exists():  # another process finished the same download, or swept it away
                raise
        _sync(self.folder)

    def _candidates(self, digest: bytes, size: int | None) -> list[Path]:
        """The names that content of this digest may have, trees first."""
        if size is not None:
            return [self.folder / cid_of(digest, size)]
        return [self.folder / cid_text(codec, digest) for codec in (DAG_PB, RAW)]

    def _contents(self) -> Iterator[tuple[Path, tuple[int, bytes]]]:
        """Every file that is content; what else lies in the folder is none of our business."""
        for path in self.folder.iterdir():
            with suppress(StoreError):
                cid = parse_cid(path.name)
                if not path.is_dir():
                    yield path, cid

    def _sweep(self, younger: float) -> None:
        """Removes what was left unfinished, by downloads or by processes that were killed."""
        with explained(f"cannot clean up {self.folder}"):
            for path in self._unfinished.iterdir():
                with suppress(FileNotFoundError):
                    if _age(path) >= younger:
                        path.unlink()


def check_size(size: int | None, limit: int) -> None:
    """Refuses before anything is read what is too large by its own account."""
    if size is not None and not 0 <= size <= limit:
        raise StoreError(f"content of {size} bytes, at most {limit} allowed")


def _is_leaf(path: Path) -> bool:
    return parse_cid(path.name)[0] == RAW


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime


def _read(path: Path, size: int | None, limit: int) -> bytes:
    """All of a regular file; never a link, a pipe, or more than `limit` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path} is not a regular file: remove it")
        if size is not None and found.st_size != size:
            raise StoreError(f"{path} was altered: it has {found.st_size} bytes, not {size}")
        check_size(found.st_size, limit)
        return file.read(found.st_size)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Says in our words what the operating system refused."""
    try:
        yield
    except FileNotFoundError as e:
        raise NotFound(f"{what}: {e.strerror}") from e
    except OSError as e:
        raise StoreError(f"{what}: {e.strerror or e}") from e
