"""What a participant keeps on its own disk: copies that save work, and the record of its run.

Nothing here is needed to go on. A lost update is trained again from the same seed, lost scores
are computed again; on the same machine they come out the same and still open the commitment.
"""

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flockllm.cid import digest_of
from flockllm.errors import InvalidConfig

RECORD = "record.jsonl"
"""One JSON object for each thing that happened, oldest first."""


def copy_of(what: str, round_: int, *made_from: bytes) -> str:
    """The name of a copy. A reorganisation may change what it is made from: then it has another."""
    return f"{what}-{round_}-{digest_of(b''.join(made_from)).hex()[:16]}"


class Journal:
    """A folder that one process at a time writes to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __enter__(self) -> Self:
        """Takes the folder for this process.

        Raises:
            InvalidConfig: another process takes part with the same key in the same task.
        """
        self._lock = (self.folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._lock.close()
            raise InvalidConfig(
                f"another process already takes part with this key: stop it first ({self.folder})"
            ) from e
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def keep(self, name: str, data: bytes) -> None:
        """Writes a copy that is there whole or not at all, also after a power cut."""
        part = self.folder / f"{name}.part"
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / name)

    def kept(self, name: str) -> bytes | None:
        """The copy, if there is one."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def drop(self, pattern: str) -> None:
        """Removes copies that have done their work."""
        for path in self.folder.glob(pattern):
            path.unlink(missing_ok=True)

    def record(self, event: str, **values: Any) -> None:
        """Appends one line to the record of the run."""
        line = json.dumps({"time": time.time(), "event": event, **values})
        with (self.folder / RECORD).open("a") as file:
            file.write(line + "\n")


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The record of a run; a last line that was cut off by a crash is left out."""
    path = folder / RECORD
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
