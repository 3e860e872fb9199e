"""Participants as processes of their own: started, watched, measured, ended."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from flockllm.errors import FlockError


@dataclass(frozen=True)
class Participant:
    """A process that takes part, and where its log is."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def start(
    name: str, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Participant:
    """Runs a module of this installation as a process that ends with this one."""
    setpriv = shutil.which("setpriv")
    command = [*([setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []), sys.executable]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches us, and we end them in order
        )
    return Participant(name, process, log)


def check(participants: Sequence[Participant]) -> bool:
    """Whether some still run.

    Raises:
        FlockError: one has failed; the end of its log says why.
    """
    for participant in participants:
        if participant.process.poll() not in (None, 0):
            tail = participant.log.read_text(errors="replace").splitlines()[-8:]
            raise FlockError(f"{participant.name} failed ({participant.log}):\n" + "\n".join(tail))
    return any(p.process.poll() is None for p in participants)


def stop(participants: Sequence[Participant]) -> None:
    """Ends what still runs."""
    for participant in participants:
        participant.process.terminate()
    for participant in participants:
        try:
            participant.process.wait(10)
        except subprocess.TimeoutExpired:
            participant.process.kill()
            participant.process.wait()


class PeakMemory:
    """The most memory that this process and its children held at once, in bytes.

    Counts proportional set size where the system tells (shared pages once), else resident.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.bytes = 0
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(self._every):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", 0) or memory.rss
                except psutil.Error:
                    continue  # it has just ended
            self.bytes = max(self.bytes, total)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
