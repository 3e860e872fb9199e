"""What a key has sent, on disk before it is on the wire.

One small JSON file for each key and chain, replaced atomically, under a file lock that all
processes with this key share. It holds pending transactions, and mined ones for as long as a
reorganisation might take them back.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flockllm.errors import InvalidConfig


@dataclass
class Attempt:
    """One signed form of a transaction; a replacement is another with the same nonce."""

    hash: str
    raw: str
    max_fee: int
    """Per gas, in wei."""
    tip: int
    """To the block's producer per gas, in wei."""
    at: float
    """Unix time at which it was made."""


@dataclass
class Entry:
    """One intent and the transaction that carries it out."""

    intent: str
    """What it is for, such as `round 3 commit_update`."""
    transaction: dict[str, Any]
    """All fields but the fees."""
    attempts: list[Attempt] = field(default_factory=list)
    block: int | None = None
    """Where it was mined; None while pending."""
    hash: str | None = None
    """The attempt that was mined."""
    done: bool = False
    """Whether the one who asked was told how it ended."""
    taken: int | None = None
    """The block at which the nonce was first seen used, without a receipt of ours."""

    @property
    def nonce(self) -> int:
        """The transaction's place among those of its key."""
        return int(self.transaction["nonce"])


@dataclass
class Journal:
    """The file of one key on one chain."""

    path: Path

    @contextmanager
    def open(self) -> Iterator[list[Entry]]:
        """The entries by nonce, with the lock held; `save` keeps changes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()

    def save(self, entries: list[Entry], *, durable: bool = True) -> None:
        """Replaces the file; if `durable`, a crash of the machine does not lose it either."""
        fresh = self.path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(json.dumps(sorted(entries, key=lambda entry: entry.nonce), default=vars))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(self.path)
        if not durable:
            return
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self) -> list[Entry]:
        try:
            content = json.loads(self.path.read_text())
            return [
                Entry(**{**e, "attempts": [Attempt(**a) for a in e["attempts"]]}) for e in content
            ]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError) as e:
            raise InvalidConfig(
                f"{self.path} is damaged ({e}): make sure that nothing of this key is pending, "
                "then delete it"
            ) from e
