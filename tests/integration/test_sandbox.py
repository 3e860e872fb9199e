"""Own model code that attacks its node, for real, in every engine: it fails and harms nothing.

The model under test runs whatever Python the caller sends as parameters, so each test is an attack
of a few lines, made from within the sandbox.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flockllm.errors import SandboxError
from flockllm.sandbox import Limits, SandboxedModel, choose, pack
from flockllm.sandbox.model import usage

ANYTHING = """
import os, sys, time, socket, ctypes
from flock_sdk import FlockModel, FlockSDK

class Anything(FlockModel):
    def init_dataset(self, path):
        print("started")
        self.path, self.calls = path, 0
    def train(self, parameters):
        self.calls += 1
        scope = {"model": self, "libc": ctypes.CDLL(None, use_errno=True), "tried": tried}
        exec("import os, sys, time, socket, ctypes\\n" + parameters.decode(), scope)
        return str(scope.get("result")).encode()
    def evaluate(self, parameters):
        return 0.5
    def aggregate(self, parameters_list):
        return b"".join(parameters_list)

def tried(action):
    "The name of the error that an action ends with, or None."
    try:
        action()
    except OSError as e:
        return type(e).__name__

FlockSDK(Anything()).run()
"""

LIMITS = Limits(
    memory=400 * 2**20,
    processes=24,
    scratch=16 * 2**20,
    output=2**20,
    start_seconds=60,
    call_seconds=60,
)
PROGRAMS = {"bubblewrap": "bwrap", "podman": "podman"}


@pytest.fixture(params=PROGRAMS)
def engine(request):
    """Every test below runs in every engine that is installed."""
    if not shutil.which(PROGRAMS[request.param]):
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def build(tmp_path, engine):
    """Makes a model of the source of its `main.py`; ends its worker after the test."""
    made = []

    def build(source=ANYTHING, records=({"instruction": "secret record"},), **options):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "main.py").write_text(textwrap.dedent(source))
        pack(folder, tmp_path / "image.tar")
        (tmp_path / "data.json").write_text(json.dumps(list(records)))
        (tmp_path / "data.json").chmod(0o600)
        options = {"limits": LIMITS, "engine": engine, "cache": tmp_path / "cache"} | options
        model = SandboxedModel(tmp_path / "image.tar", tmp_path / "data.json", **options)
        made.append(model)
        return model

    yield build
    for model in made:
        model.close()


@pytest.fixture
def run(build):
    """Runs Python within the sandbox; gives what it assigned to `result`, as text."""
    model = build()
    return lambda code: model.train(textwrap.dedent(code).encode()).decode()


def runs(pid):
    """Whether a process is there and not just a line in the process table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_four_methods_work(build):
    """Bytes in, bytes or a score out, over one worker that stays warm."""
    model = build()

    assert model.evaluate(None) == 0.5
    assert model.aggregate([b"a", b"\x00\xff"]) == b"a\x00\xff"
    assert [model.train(b"result = model.calls") for _ in range(3)] == [b"1", b"2", b"3"]


def test_a_cold_worker_remembers_nothing(build):
    """With `warm=False` no call sees what an earlier one left behind."""
    model = build(warm=False)

    assert [model.train(b"result = model.calls") for _ in range(2)] == [b"1", b"1"]


def test_it_reads_its_data_and_cannot_change_it(run):
    """The records are there, where the SDK says, and only to be read."""
    assert json.loads(run("result = open(model.path).read()")) == [{"instruction": "secret record"}]
    assert run("result = tried(lambda: open(model.path, 'a'))") in ("OSError", "PermissionError")
    assert run("result = tried(lambda: os.remove(model.path))") != "None"


def test_it_reaches_no_network(run):
    """Not this machine's servers, not its neighbours, no names: there is a loopback, alone."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        connect = f"tried(lambda: socket.create_connection(('{{}}', {port}), 2))"
        for host in ("127.0.0.1", "10.0.0.1", "8.8.8.8", "localhost"):
            assert run(f"result = {connect.format(host)}") in (
                "ConnectionRefusedError",
                "OSError",
                "gaierror",
            )
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    devices = run("result = open('/proc/net/dev').read()").splitlines()[2:]
    assert [device.split(":")[0].strip() for device in devices] == ["lo"]
    assert run("result = tried(lambda: socket.getaddrinfo('example.org', 80))") == "gaierror"
    send = "lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))"
    assert run(f"result = tried({send})") == "OSError"


def test_it_reaches_no_socket_of_the_host(run, tmp_path):
    """Unix sockets of the host, with and without a file, are not there."""
    for address in (str(tmp_path / "s"), "\0flockllm-test"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen()
            error = run(
                f"result = tried(lambda: socket.socket(socket.AF_UNIX).connect({address!r}))"
            )
        assert error in ("ConnectionRefusedError", "FileNotFoundError")


def test_it_writes_nothing_outside_its_scratch_folder(run, tmp_path):
    """Code, system, kernel settings and the host's folders are read-only or not there."""
    places = [
        "/app/main.py", "/app/new", "/new", "/usr/new", "/etc/passwd", "/proc/new",
        "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/new", "/root/new",
        "/home/new", str(tmp_path / "new"), str(tmp_path / "image.tar"), sys.prefix + "/new",
    ]  # fmt: skip
    before = (tmp_path / "image.tar").read_bytes()

    code = f"result = [place for place in {places} if tried(lambda: open(place, 'w')) is None]"
    assert run(code) == "[]"
    here = Path(sys.prefix)  # mounted, read-only, where it is
    mounted = [here.parts[2]] if here.is_relative_to("/tmp") else []
    written = run("open('/tmp/new', 'w').write('x'); result = sorted(os.listdir('/tmp'))")
    assert written == str(sorted(["new", *mounted]))
    assert (tmp_path / "image.tar").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_it_reads_no_secret_of_the_host(build, tmp_path, monkeypatch):
    """Keys, home folders and the node's environment and processes are not to be seen."""
    monkeypatch.setenv("FLOCKLLM_PASSWORD", "password in the environment")
    model = build()

    def run(code):
        return model.train(textwrap.dedent(code).encode()).decode()

    secret = tmp_path / "key.json"
    secret.write_text("private key")
    places = [str(secret), str(Path.home()), "/etc/shadow", "/etc/passwd", "/var/log", "/run"]
    seen = run(f"""
        result = []
        for place in {places}:
            try:
                result += os.listdir(place) if os.path.isdir(place) else [open(place).read()]
            except OSError:
                pass
    """)

    assert "private key" not in seen
    assert "root:" not in seen
    assert ".ssh" not in seen
    environment = run("""
        result = dict(os.environ)
        for process in ("1", "self"):
            for name in ("environ", "cmdline", "mountinfo"):
                try:
                    result[process + name] = open(f"/proc/{process}/{name}").read()
                except OSError:
                    pass
    """)
    assert "password in the environment" not in environment
    assert "key.json" not in environment
    assert str(os.getpid()) not in run("result = [p for p in os.listdir('/proc') if p.isdigit()]")


def test_it_has_no_privileges(run):
    """No capability, no way to a new one, a system call filter, and nobody as its user."""
    status = dict(
        line.split(":\t") for line in run("result = open('/proc/self/status').read()").splitlines()
    )

    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "0" not in status["Uid"].split()


def test_dangerous_system_calls_are_refused(run):
    """New namespaces, mounts, keys, tracing and the like: the ways out that there have been."""
    import platform

    from flockllm.sandbox.seccomp import CALLS, CLONE, MACHINES, NEW_NAMESPACES

    column, _ = MACHINES[platform.machine()]
    names = ("unshare", "mount", "keyctl", "bpf", "userfaultfd", "setns", "io_uring_setup",
             "perf_event_open", "open_by_handle_at", "chroot", "syslog")  # fmt: skip
    numbers = [CALLS[name][column] for name in names]
    code = f"result = [n for n in {numbers} if libc.syscall(n, 0x10000000, 0, 0, 0, 0) != -1]"
    assert run(code) == "[]"
    assert run(f"result = libc.syscall({CLONE[column]}, {NEW_NAMESPACES | 17}, 0, 0, 0, 0)") == "-1"
    for family in ("AF_PACKET", "AF_VSOCK", "AF_ALG"):
        assert run(f"result = tried(lambda: socket.socket(socket.{family}, 3))") != "None"


def test_a_fork_bomb_is_held_and_ended(build):
    """Forking without end stops at the limit on processes; afterwards nothing is left of it."""
    model = build(limits=Limits(processes=24, call_seconds=3, start_seconds=60))
    assert model.evaluate(None) == 0.5
    pid = model._running._started.pid
    bomb = b"""
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
    with pytest.raises(SandboxError, match=r"was killed|ended by itself"):
        model.train(bomb)

    assert not runs(pid)
    assert model.evaluate(None) == 0.5  # a new worker


def test_one_process_gets_no_more_memory_than_the_limit(build):
    """Eating memory ends in an error that tells the node why."""
    with pytest.raises(SandboxError, match=r"MemoryError|memory|ended by itself"):
        build().train(b"result = len(bytearray(2**30))")


def test_many_processes_get_no_more_memory_than_the_limit(build, tmp_path, monkeypatch):
    """Nor does spreading it over processes help; and no trace is left where the node works."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    eat = b"""
for _ in range(8):
    if os.fork() == 0:
        eaten = bytearray(os.urandom(1)) * (150 * 2**20)
        time.sleep(60)
time.sleep(60)
"""
    with pytest.raises(SandboxError, match=r"memory|ended by itself|took too long"):
        build(limits=Limits(memory=400 * 2**20, call_seconds=30)).train(eat)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_scratch_space_is_small(run, folder):
    """Files, which are memory here, stop at the limit, in one piece or in many."""
    written = run(f"""
        result = 0
        try:
            for i in range(100):
                with open(f"{folder}/{{i}}", "wb") as file:
                    file.write(bytes(2**20))
                result += 1
        except OSError:
            pass
    """)
    assert int(written) <= LIMITS.scratch // 2**20


def test_what_it_prints_neither_blocks_nor_fills_anything(build):
    """Only the end of it is kept, and shown with an error, without terminal codes."""
    model = build()
    model.train(b"for _ in range(100): print('x' * 2**20)")
    with pytest.raises(SandboxError) as caught:
        model.train(rb"print('\x1b[2J the end'); sys.stdout.flush(); os._exit(3)")

    assert "ended by itself" in str(caught.value)
    assert "the end" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_an_exception_of_the_model_is_an_error_of_a_line_and_the_worker_lives_on(build):
    """What a stranger's parameters provoke does not cost the node its worker."""
    model = build()
    with pytest.raises(SandboxError, match=r"the model failed: ValueError: no such thing"):
        model.train(b"raise ValueError('no such thing')")

    assert model.train(b"result = model.calls") == b"2"


def test_a_call_that_never_ends_is_ended(build):
    """However busy or idle it is."""
    model = build(limits=Limits(call_seconds=1, start_seconds=60))
    for code in (b"while True: pass", b"time.sleep(600)"):
        with pytest.raises(SandboxError, match="took too long"):
            model.train(code)


def test_an_answer_has_a_limit(build):
    """More parameters than agreed are refused before they are kept."""
    with pytest.raises(SandboxError, match=r"answered more than 1048576 bytes"):
        build().train(b"result = 'x' * 2**21")


def test_a_worker_that_cannot_start_says_why(build):
    """The trace of a missing package is in the error."""
    with pytest.raises(
        SandboxError, match=r"(?s)(ended by itself|cannot start).*No module named 'not_there'"
    ):
        build("import not_there").evaluate(None)


def test_a_worker_that_never_listens_is_ended(build):
    """Starting has a limit too."""
    model = build("import time; time.sleep(600)", limits=Limits(start_seconds=2))
    with pytest.raises(SandboxError, match=r"took too long|the connection broke"):
        model.evaluate(None)


RAW = """
import json, socket, time
answer = json.load(open("/dataset.json"))[0]["answer"].encode("latin-1")
with socket.create_server(("127.0.0.1", 5000)) as server:
    while True:
        connection, _ = server.accept()
        connection.recv(65536)
        if answer == b"drip":
            connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
            while True:
                connection.sendall(b"0")
                time.sleep(0.1)
        connection.sendall(answer)
        connection.close()
"""
HEAD = "HTTP/1.0 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.0 200 OK\r\n" + "a: b\r\n" * 500 + "\r\n{}",
        "HTTP/1.0 500 no\r\n\r\n[]",
        HEAD + "\xff",
        HEAD + "[]",
        HEAD + "{}",
        HEAD + "[" * 100_000,
        HEAD + '{"accuracy": NaN, "parameters": "!"}',
        HEAD + '{"accuracy": 1e999, "parameters": 7}',
        HEAD + '{"accuracy": true, "parameters": null}',
        HEAD + '{"accuracy": "1", "parameters": ["AA=="]}',
        "drip",
    ],
)
def test_an_answer_that_breaks_the_contract_is_an_error(build, answer):
    """Whatever stands behind the port, the node gets a `SandboxError` and nothing else."""
    model = build(RAW, [{"answer": answer}], limits=Limits(call_seconds=2, start_seconds=60))

    with pytest.raises(SandboxError):
        model.evaluate(None)
    with pytest.raises(SandboxError):
        model.train(None)


def test_the_sandbox_dies_with_its_node(tmp_path, build, engine):
    """A killed node leaves no stranger's code running."""
    if engine == "podman":
        pytest.skip("podman's monitor keeps a container when podman's caller is killed")
    build()
    code = f"""
        from pathlib import Path
        from flockllm.sandbox import SandboxedModel
        folder = Path({str(tmp_path)!r})
        model = SandboxedModel(folder / "image.tar", folder / "data.json", cache=folder / "cache")
        model.evaluate(None)
        print(model._running._started.pid, flush=True)
        model.train(b"time.sleep(600)")
    """
    node = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    with node:
        pid = int(node.stdout.readline())
        assert usage(pid)[1] > 0
        node.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while runs(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not runs(pid)


def test_without_an_engine_it_says_how_to_get_one(monkeypatch, tmp_path):
    """And never runs the code bare instead, unless told so."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        choose(None)
    with pytest.raises(SandboxError, match="podman is not installed"):
        choose("podman")
    assert choose("bare") == "bare"


def test_bare_runs_only_when_asked_for(tmp_path):
    """Unprotected code runs as an ordinary process, within the limits on time and memory."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "main.py").write_text(ANYTHING)
    pack(folder, tmp_path / "image.tar")
    (tmp_path / "data.json").write_text("[]")
    options = {"engine": "bare", "limits": LIMITS, "cache": tmp_path / "cache"}
    with SandboxedModel(tmp_path / "image.tar", tmp_path / "data.json", **options) as model:
        assert model.evaluate(None) == 0.5
        assert model.train(b"result = open(model.path).read()") == b"[]"
