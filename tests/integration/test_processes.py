"""Participants of a simulation: commands in processes forked from a warm one."""

import subprocess
import sys
import time

import psutil
import pytest

from flockllm import __version__
from flockllm.errors import FlockError
from flockllm.simulate.processes import check, start, stop


def test_a_participant_is_the_command_it_would_be_by_itself(tmp_path):
    """Its output is its log, its exit status its own; a failure is told with the log's end."""
    version = start("good", "flockllm.cli", ["--version"], tmp_path / "a" / "log", {})
    assert version.wait(60) == 0
    assert __version__ in version.log.read_text()
    assert not check([version])

    wrong = start("bad", "flockllm.cli", ["join", "--wrong"], tmp_path / "b" / "log", {})
    assert wrong.wait(60) == 2
    with pytest.raises(FlockError, match=r"bad failed(.|\n)*--wrong"):
        check([version, wrong])


def test_participants_have_environments_of_their_own(tmp_path):
    """What one is told another does not know, nor the process that started them."""
    say = ["-n1", "-r1", "import os; print(os.environ['WHO'])"]
    people = [
        start(name, "timeit", say, tmp_path / name, {"WHO": f"I am {name}"})
        for name in ("one", "other")
    ]
    for person in people:
        assert person.wait(60) == 0
        assert f"I am {person.name}\n" in person.log.read_text()
    stop(people)


PARENT = """
import sys, time
from pathlib import Path
from flockllm.simulate.processes import start
if __name__ == "__main__":
    person = start("x", "http.server", ["--bind", "127.0.0.1", "0"], Path(sys.argv[1]), {})
    print(person.process.pid, flush=True)
    time.sleep(600)
"""


def test_participants_end_with_who_started_them(tmp_path):
    """Even where that was killed and could not tell them."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    (tmp_path / "log").touch()
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    )
    person = psutil.Process(int(parent.stdout.readline()))
    end = time.monotonic() + 60
    while "Serving" not in (tmp_path / "log").read_text():
        assert person.is_running(), (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)

    parent.kill()
    parent.communicate()

    psutil.wait_procs([person], timeout=60)
    assert not person.is_running()
