"""Participants as processes of their own: started, watched, measured, ended.

What a participant imports takes seconds and a third of a gigabyte. So one server process imports it
(`warm`), and participants are forked from that: each runs the command it would run anyway, with a
key, data, log and memory of its own, but what none of them changes is there once.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from flockllm.errors import FlockError

_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Participant:
    """A process that takes part, and where its log is."""

    name: str
    process: ForkServerProcess
    log: Path

    def wait(self, seconds: float) -> int | None:
        """How the process ended, minus the signal if by one; None if it runs on."""
        self.process.join(seconds)
        return self.process.exitcode


def warm_up() -> None:
    """Begins to load what participants need, in the background; later calls do nothing."""
    if sys.platform == "linux":  # elsewhere system libraries do not survive a fork
        _CONTEXT.set_forkserver_preload(["flockllm.simulate.warm"])
    forkserver.ensure_running()


def start(
    name: str, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Participant:
    """Runs a module of this installation as a process that ends with this one."""
    warm_up()
    log.parent.mkdir(parents=True, exist_ok=True)
    process = _CONTEXT.Process(
        target=_run, args=(module, arguments, log, dict(environment)), name=name, daemon=True
    )
    process.start()
    return Participant(name, process, log)


def _run(module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """What `python -m module arguments` does, in a process that has loaded its libraries."""
    os.setsid()  # Ctrl-C reaches the parent, which ends us in order
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    if "torch" in sys.modules and "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # it was told another number
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def check(participants: Sequence[Participant]) -> bool:
    """Whether some still run.

    Raises:
        FlockError: one has failed; the end of its log says why.
    """
    for participant in participants:
        if participant.process.exitcode not in (None, 0):
            tail = participant.log.read_text(errors="replace").splitlines()[-8:]
            raise FlockError(f"{participant.name} failed ({participant.log}):\n" + "\n".join(tail))
    return any(p.process.is_alive() for p in participants)


def stop(participants: Sequence[Participant]) -> None:
    """Ends what still runs."""
    for participant in participants:
        participant.process.terminate()
    for participant in participants:
        if participant.wait(10) is None:
            participant.process.kill()
            participant.process.join()


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
