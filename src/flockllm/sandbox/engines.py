"""What runs own model code apart from the machine: bubblewrap, podman, or nothing at all.

Each engine starts an unpacked image and returns the process that holds it and the process id of its
first process, in whose namespaces it lives. All of them: no network but a loopback, no privileges,
nothing writable but a small /tmp, the data read-only, and an environment made from nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from flockllm.errors import SandboxError
from flockllm.sandbox import enter
from flockllm.sandbox.image import Image
from flockllm.sandbox.seccomp import profile, program
from flockllm.sdk import DATASET, PORT

Engine = Literal["bubblewrap", "podman", "bare"]

NOBODY = 65534
TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108  # the sandbox's own
AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
)  # fmt: skip
OPEN_FILES = 256

HOW_TO_GET_ONE = (
    "neither bubblewrap nor podman is installed, and own model code is not run without: "
    "`apt-get install bubblewrap` (Debian, Ubuntu), `dnf install bubblewrap` (Fedora), "
    "`pacman -S bubblewrap` (Arch); on macOS and Windows use a Linux virtual machine"
)


@dataclass(frozen=True)
class Limits:
    """What own model code may use before it is killed."""

    memory: int = 4 * 2**30
    """Bytes of memory, of all its processes together."""
    processes: int = 64
    """Processes and threads."""
    scratch: int = 256 * 2**20
    """Bytes in /tmp, which is memory too, and the longest file."""
    output: int = 256 * 2**20
    """Bytes of parameters that a call may return."""
    start_seconds: float = 120
    """Until the model listens."""
    call_seconds: float = 4 * 3600
    """For one call."""
    threads: int = 1
    """Threads that numerical libraries are told to use."""


@dataclass(frozen=True)
class Job:
    """What an engine is to run."""

    image: Image
    root: Path
    """The unpacked image."""
    data: Path
    limits: Limits
    python: Path
    """The participant's interpreter, for images that bring none."""

    def environment(self) -> dict[str, str]:
        """Nothing of the node's own environment gets in."""
        threads = str(self.limits.threads)
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **self.image.environment,
            **({} if self.image.brings_runtime else {"PATH": f"{self.python.parent}:/usr/bin"}),
            "HOME": TMP,
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def mounts(self) -> list[Path]:
        """Folders and files of the host that an image without a runtime needs, read-only."""
        if self.image.brings_runtime:
            return []
        code = "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"
        run = subprocess.run([self.python, "-I", "-c", code], capture_output=True, check=True)
        prefixes = [Path(line) for line in os.fsdecode(run.stdout).splitlines()]
        system = [Path("/usr"), *map(Path, ("/bin", "/sbin", "/lib", "/lib64"))]
        extra = [p for p in dict.fromkeys(prefixes) if not p.is_relative_to("/usr")]
        libraries = [Path("/etc/ld.so.cache"), Path("/etc/alternatives")]
        return [path for path in (*system, *extra, *libraries) if path.exists()]


@dataclass(frozen=True)
class Started:
    """A sandbox that runs."""

    process: subprocess.Popen[bytes]
    pid: int
    """Its first process, as the host numbers it."""
    stop: Callable[[], None]
    """Ends all of its processes."""
    connect: Callable[[float], socket.socket]
    """Waits, so many seconds at the most, until the model listens; gives a connection to it."""


def choose(wanted: Engine | None) -> Engine:
    """The engine that is wanted, or the first that is installed; never `bare` unasked.

    Raises:
        SandboxError: it is not installed, or none is.
    """
    programs: dict[Engine, str] = {"bubblewrap": "bwrap", "podman": "podman"}
    if wanted == "bare":
        return wanted
    if wanted:
        if not shutil.which(programs[wanted]):
            raise SandboxError(f"{wanted} is not installed: `apt-get install {wanted}`")
        return wanted
    for engine, name in programs.items():
        if shutil.which(name):
            return engine
    raise SandboxError(HOW_TO_GET_ONE)


# bubblewrap -------------------------------------------------------------------------------------


def bubblewrap(job: Job) -> Started:
    """Starts in new namespaces of every kind, as nobody, with system calls filtered.

    The limits are set on the first process before it runs anything.
    """
    mounts = [(path, f"/{path.name}") for path in sorted(job.root.iterdir())]
    mounts += [(path, str(path)) for path in job.mounts()]
    links = [(os.readlink(path), place) for path, place in mounts if path.is_symlink()]
    binds = [(str(path), place) for path, place in mounts if not path.is_symlink()]

    binds, before = _within_reach(binds) if _root() else (binds, [])

    scratch = str(job.limits.scratch)
    arguments = ["--unshare-all", "--unshare-user", "--disable-userns"]
    arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"]
    arguments += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    for name, value in job.environment().items():
        arguments += ["--setenv", name, value]
    in_tmp = [bind for bind in binds if Path(TMP) in Path(bind[1]).parents]
    for source, place in binds:
        if (source, place) not in in_tmp:
            arguments += ["--ro-bind", source, place]
    for target, place in links:
        arguments += ["--symlink", target, place]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    arguments += ["--size", scratch, "--tmpfs", SHM, "--remount-ro", "/dev"]
    arguments += ["--size", scratch, "--tmpfs", TMP]
    for source, place in in_tmp:
        arguments += ["--ro-bind", source, place]

    with ExitStack() as stack:
        calls = stack.enter_context(_file(program()))
        data = stack.enter_context(job.data.open("rb"))
        told, tell = (stack.enter_context(end) for end in _pipe())  # its process id, to us
        wait, go = (stack.enter_context(end) for end in _pipe())  # the word to go on, from us
        arguments += ["--ro-bind-data", str(data.fileno()), DATASET]
        arguments += ["--remount-ro", "/", "--chdir", job.image.working_folder]
        arguments += ["--seccomp", str(calls.fileno()), "--info-fd", str(tell.fileno())]
        arguments += ["--block-fd", str(wait.fileno())]
        # The code sees the command line and the environment of its first process: none of ours.
        options = stack.enter_context(_file(b"".join(a.encode() + b"\0" for a in arguments)))
        process = subprocess.Popen(
            [*before, "bwrap", "--args", str(options.fileno()), "--", *job.image.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[f.fileno() for f in (calls, data, tell, wait, options)],
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
        tell.close()
        try:
            pid = int(json.loads(told.read())["child-pid"])
            _limit(pid, job.limits)
            go.write(b".")
            go.flush()
        except (ValueError, KeyError, OSError, subprocess.CalledProcessError) as e:
            process.kill()
            said = process.communicate()[0].decode(errors="replace").strip()
            raise SandboxError(f"bubblewrap cannot start: {said or e}") from e
        return Started(process, pid, process.kill, lambda seconds: _connect_within(pid, seconds))


REACH = """
set -e
reach=$1
shift
mount -t tmpfs -o mode=755 flockllm "$reach"
number=0
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir "$reach/$number"; else : > "$reach/$number"; fi
    mount --bind "$1" "$reach/$number"
    number=$((number + 1))
    shift
done
shift
exec "$@"
"""
PLACES = tuple(map(Path, ("/mnt", "/media", "/srv", "/opt")))


def _within_reach(binds: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Where nobody can reach what root can, and the start of a command that has it there.

    Root does not start sandboxes as root: it is above the limit on processes, and owns the files
    of the kernel's settings. But nobody may not pass through root's folders; so in a mount
    namespace of the sandbox's own everything is mounted again below a folder that it does not need.
    """
    sources = [Path(source) for source, _ in binds]
    for place in PLACES:
        if place.is_dir() and not any(source.is_relative_to(place) for source in sources):
            again = [(f"{place}/{number}", where) for number, (_, where) in enumerate(binds)]
            mount = ["unshare", "--mount", "sh", "-c", REACH, "sh", str(place)]
            return again, [*mount, *map(str, sources), "--", *AS_NOBODY]
    raise SandboxError(f"as root, one of {', '.join(map(str, PLACES))} must be an unused folder")


def _limit(pid: int, limits: Limits) -> None:
    """Limits a process that runs as nobody if this one runs as root, else as the same user."""
    values = {
        "data": limits.memory,
        "nproc": limits.processes,
        "fsize": limits.scratch,
        "nofile": OPEN_FILES,
        "core": 0,
        "memlock": 2**16,
    }
    options = [f"--{name}={value}:{value}" for name, value in values.items()]
    command = ["prlimit", "--pid", str(pid), *options]
    subprocess.run([*AS_NOBODY, *command] if _root() else command, check=True, capture_output=True)


def _file(content: bytes) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    file.write(content)
    file.seek(0)
    return file


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return open(read, "rb"), open(write, "wb")


def _root() -> bool:
    return os.geteuid() == 0


def _connect_within(pid: int, seconds: float) -> socket.socket:
    """A connection to the model's port in the network namespace of `pid`."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        command = [sys.executable, "-I", "-S", enter.__file__]
        run = subprocess.run(
            [*command, str(pid), str(PORT), str(seconds), str(fd)],
            pass_fds=[fd],
            capture_output=True,
        )
        theirs.close()
        _, found, _, _ = socket.recv_fds(ours, 1, 1)
    if not found:
        reason = run.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConnectionError(reason)
    return socket.socket(fileno=found[0])


# podman -----------------------------------------------------------------------------------------


def podman(job: Job) -> Started:
    """Starts a container on the unpacked image; the limits are its control group's."""
    name = f"flockllm-{uuid.uuid4().hex}"
    limits = job.limits
    # Closed to others; conmon, which watches the container, writes into its working folder.
    folder = tempfile.mkdtemp(prefix="flockllm-")
    data = Path(folder, "dataset.json")  # open to the container's user
    shutil.copyfile(job.data, data)
    data.chmod(0o444)
    calls = Path(folder, "seccomp.json")
    calls.write_text(json.dumps(profile()))
    arguments = ["podman", "run", "--rm", "--name", name, "--network", "none", "--read-only"]
    arguments += ["--read-only-tmpfs=false", "--cap-drop", "all", "--http-proxy=false"]
    arguments += ["--security-opt", "no-new-privileges", "--hostname", "sandbox"]
    arguments += ["--security-opt", f"seccomp={calls}"]
    arguments += ["--pids-limit", str(limits.processes), "--ulimit", "core=0:0"]
    arguments += ["--memory", f"{limits.memory}b", "--memory-swap", f"{limits.memory}b"]
    arguments += ["--tmpfs", f"{TMP}:rw,size={limits.scratch},mode=1777"]
    arguments += ["--shm-size", f"{limits.scratch}b", "--log-driver", "none"]
    arguments += ["--ulimit", f"nofile={OPEN_FILES}:{OPEN_FILES}"]
    # The control group limits processes; podman's own default for this is beyond some roots.
    arguments += ["--ulimit", "nproc=4096:4096"]
    arguments += ["--ulimit", f"fsize={limits.scratch}:{limits.scratch}"]
    arguments += ["--user", f"{NOBODY}:{NOBODY}"] if _root() else []
    arguments += ["--workdir", job.image.working_folder, "--entrypoint", ""]
    for key, value in job.environment().items():
        arguments += ["--env", f"{key}={value}"]
    for path in job.mounts():
        arguments += ["--volume", f"{path.resolve()}:{path}:ro"]
    arguments += ["--volume", f"{data}:{DATASET}:ro", "--rootfs", f"{job.root}:O"]
    if shutil.which("runc"):
        arguments[1:1] = ["--runtime", "runc"]

    process = subprocess.Popen(
        [*arguments, *job.image.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
    )

    def stop() -> None:
        remove = ["podman", "rm", "--force", "--ignore", "--time", "0", name]
        subprocess.run(remove, capture_output=True)
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)

    pid, until = 0, time.monotonic() + limits.start_seconds
    inspect = ["podman", "inspect", "--format", "{{.State.Pid}}", name]
    while not pid and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
        seen = subprocess.run(inspect, capture_output=True, text=True).stdout.strip()
        pid = int(seen) if seen.isdecimal() else 0
    if not pid:
        stop()
        said = process.communicate()[0].decode(errors="replace").strip()
        raise SandboxError(f"podman cannot start: {said or 'it took too long'}")
    return Started(process, pid, stop, lambda seconds: _connect_within(pid, seconds))


# Nothing ----------------------------------------------------------------------------------------


def bare(job: Job) -> Started:
    """Runs the code as an ordinary process of this user: it can do all that the user can."""
    if job.image.brings_runtime:
        raise SandboxError("an image with its own root file system needs bubblewrap or podman")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        job.image.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=job.root / job.image.working_folder.lstrip("/"),
        env={**job.environment(), "FLOCK_PORT": str(port), "FLOCK_DATASET": str(job.data)},
    )

    def stop() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    return Started(
        process, process.pid, stop, lambda seconds: enter.connect(process.pid, port, seconds)
    )


ENGINES: dict[Engine, Callable[[Job], Started]] = {
    "bubblewrap": bubblewrap,
    "podman": podman,
    "bare": bare,
}
