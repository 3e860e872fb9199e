"""The node's side of own model code: parameters in, parameters or a score out, within limits."""

from __future__ import annotations

import http.client
import json
import logging
import math
import re
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flockllm.errors import SandboxError
from flockllm.sandbox.engines import ENGINES, Engine, Job, Limits, Started, choose
from flockllm.sandbox.image import open_image, unpack

log = logging.getLogger(__name__)

CACHE = Path("~/.cache/flockllm/images").expanduser()
TICK = 0.05
"""Seconds between two looks at what a sandbox uses."""

KEPT_OUTPUT = 16 * 2**10
"""Bytes of what the code prints that are kept, the last ones."""

NESTING = 1000
"""Brackets in an answer; far below what overflows the stack of Python's JSON parser."""

UNPRINTABLE = re.compile(r"[^\n\x20-\x7e\xa0-\uffff]")
"""Would move the cursor, colour or rename the terminal of whoever reads the error."""


class SandboxedModel:
    """A `FlockModel` in an image, run apart from this machine; one warm worker over all calls.

    It starts with the first call. When a call fails by overstepping a limit the worker is killed
    and the next call starts a new one. With `warm=False` every call gets a new one, so that what
    a stranger's parameters did to it cannot reach the next call.

    Args:
        image: an OCI image archive, whose digest the caller has checked.
        data: the participant's records, a JSON list; the code sees them as `/dataset.json`.
        engine: None for the first that is installed. `bare` runs the code unprotected.
        cache: where images are unpacked, once each.
        python: interpreter with the packages that the image's `requirements.txt` names, for an
            image without a root file system of its own.

    Raises:
        SandboxError: every method, whatever the code does; the message ends with what it printed.
    """

    def __init__(
        self,
        image: Path,
        data: Path,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        *,
        engine: Engine | None = None,
        warm: bool = True,
        cache: Path = CACHE,
        python: Path = Path(sys.executable),
    ) -> None:
        self.limits, self.warm = limits, warm
        self.engine = choose(engine)
        with open_image(image) as opened:
            if not opened.command:
                raise SandboxError(f"{image}: names no command to run")
            root = unpack(opened, cache.absolute())
        self._job = Job(opened, root, data, limits, python)
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; a later call starts a new one."""
        if self._running:
            self._running.end("closed")
            self._running = None

    def train(self, parameters: bytes | None) -> bytes:
        """Parameters trained on the data, starting from `parameters` or from nothing."""
        return self._parameters("train", parameters=_text(parameters))

    def aggregate(self, parameters_list: Sequence[bytes]) -> bytes:
        """One made of many."""
        return self._parameters("aggregate", parameters_list=[_text(p) for p in parameters_list])

    def evaluate(self, parameters: bytes | None) -> float:
        """How good the parameters are on the data; more is better."""
        score = self._call("evaluate", parameters=_text(parameters)).get("accuracy")
        if (
            isinstance(score, bool)
            or not isinstance(score, int | float)
            or not math.isfinite(score)
        ):
            raise SandboxError(f"evaluate must answer a finite number, got {score!r:.40}")
        return float(score)

    def _parameters(self, method: str, **arguments: object) -> bytes:
        try:
            return b64decode(self._call(method, **arguments)["parameters"], validate=True)
        except (KeyError, ValueError, TypeError) as e:
            raise SandboxError(f"{method} must answer parameters in base64: {e!r:.80}") from e

    def _call(self, method: str, **arguments: object) -> dict[str, Any]:
        if not self._running:
            self._running = _Running(self.engine, self._job)
        body = json.dumps({"method": method, **arguments}).encode()
        try:
            return self._running.call(body)
        except _Broken as e:
            self.close()
            raise SandboxError(f"{method} in the sandbox ({self.engine}): {e}") from e
        finally:
            if not self.warm:
                self.close()


def _text(parameters: bytes | None) -> str | None:
    return None if parameters is None else b64encode(parameters).decode("ascii")


class _Broken(Exception):
    """The worker can no longer be used."""


class _Running:
    """A worker and the two threads that watch it: what it prints, and what it uses."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.limits = job.limits
        self._reason: str | None = None
        self._printed = bytearray()
        self._until = time.monotonic() + self.limits.start_seconds
        self._started: Started = ENGINES[engine](job)
        self._threads = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        log.debug("sandbox %s started as process %d", engine, self._started.pid)

    def call(self, body: bytes) -> dict[str, Any]:
        """Posts `body` to `/call`; within the limits on time and size."""
        connection = http.client.HTTPConnection("sandbox")
        try:
            self._until = time.monotonic() + self.limits.start_seconds
            connection.sock = self._started.connect(self.limits.start_seconds)
            self._until = time.monotonic() + self.limits.call_seconds
            connection.sock.settimeout(self.limits.call_seconds + 1)
            connection.request("POST", "/call", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            most = self.limits.output * 4 // 3 + 1024
            answer = response.read(most + 1)
            if len(answer) > most:
                raise _Broken(self.end(f"answered more than {self.limits.output} bytes"))
            if answer.count(b"[") + answer.count(b"{") > NESTING:
                raise ValueError("an answer is one object, and this has many")
            content = json.loads(answer)
            if response.status == 200 and isinstance(content, dict):
                return content
            error = content.get("error", "") if isinstance(content, dict) else ""
            raise SandboxError(f"the model failed: {_shown(str(error)) or response.status}")
        except (OSError, http.client.HTTPException, ValueError) as e:
            self._wait_if_it_ends()
            raise _Broken(self.end(f"the connection broke: {_shown(repr(e))}")) from e
        finally:
            self._until = math.inf
            connection.close()

    def end(self, reason: str) -> str:
        """Kills the worker, once; returns why it ended and the last that it printed."""
        stopped = self._reason is None and self._started.process.poll() is not None
        self._kill("it ended by itself" if stopped else reason)
        self._started.process.wait()
        for thread in self._threads:
            thread.join()
        printed = _shown(self._printed.decode(errors="replace")).strip()
        return f"{self._reason}\n{printed}" if printed else str(self._reason)

    def _wait_if_it_ends(self) -> None:
        """A broken connection may be the first sign of an end; an engine takes time to notice."""
        for seconds in (0.3, 5):
            with suppress(subprocess.TimeoutExpired):
                self._started.process.wait(seconds)
            if Path(f"/proc/{self._started.pid}").exists():
                break

    def _kill(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._started.stop()

    def _listen(self) -> None:
        """Keeps the last that the code prints; it can neither fill a disk nor wait for a reader."""
        pipe = self._started.process.stdout
        assert pipe is not None  # noqa: S101  # all engines make one
        with pipe:
            while piece := pipe.read1(2**16):  # type: ignore[attr-defined]
                self._printed += piece
                del self._printed[:-KEPT_OUTPUT]

    def _watch(self) -> None:
        """Kills the worker when it overstays, or its processes together use too much."""
        limits = self.limits
        while self._started.process.poll() is None:
            memory, processes = usage(self._started.pid)
            if time.monotonic() > self._until:
                self._kill("took too long and was killed")
            elif memory > limits.memory:
                self._kill(f"used more than {limits.memory} bytes of memory and was killed")
            elif processes > limits.processes:
                self._kill(f"ran more than {limits.processes} processes and was killed")
            time.sleep(TICK)


def usage(pid: int) -> tuple[int, int]:
    """Bytes of memory and number of threads of `pid` and everything below it.

    What is left by a parent goes to the first process of the namespace, so nothing gets away.
    """
    memory = threads = 0
    for process in _below(pid):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:  # it has just ended
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        for name in ("RssAnon", "RssShmem", "VmSwap"):
            memory += int(fields.get(name, "0 kB").split()[0]) * 1024
        threads += int(fields["Threads"])
    return memory, threads


def _below(pid: int) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        yield (process := waiting.pop())
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                waiting += map(int, children.read_text().split())
            except OSError:
                continue


def _shown(text: str) -> str:
    return UNPRINTABLE.sub("·", text)[-2000:]
