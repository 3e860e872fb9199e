"""The local store among several real processes, some of which die."""

import random
import signal
import subprocess
import sys
import time

import pytest

from flockllm.errors import NotFound
from flockllm.store import LocalStore, digest_of

SIZE = 8 << 20

PUT = """
import random, sys
from pathlib import Path
from flockllm.store import LocalStore
store, size = LocalStore(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
for seed in sys.argv[3:]:
    store.put(random.Random(int(seed)).randbytes(size))
"""


def writer(folder, *seeds):
    """A process that puts the contents of `seeds`, past its start-up."""
    process = subprocess.Popen(
        [sys.executable, "-c", PUT, str(folder), str(SIZE), *map(str, seeds)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_processes_that_put_the_same_get_the_same(tmp_path):
    """Four writers of the same three contents: each is there once, and whole."""
    processes = [writer(tmp_path, 1, 2, 3) for _ in range(4)]
    assert [p.wait(60) for p in processes] == [0] * 4
    for p in processes:
        p.stdout.close()

    store = LocalStore(tmp_path)
    for seed in (1, 2, 3):
        data = random.Random(seed).randbytes(SIZE)
        assert store.get(digest_of(data), SIZE, SIZE) == data
    assert len([p for p in tmp_path.iterdir() if p.is_file()]) == 3
    assert not list((tmp_path / "unfinished").iterdir())


@pytest.mark.parametrize("delay", [n / 200 for n in range(16)])
def test_a_writer_killed_at_any_moment_leaves_all_or_nothing(tmp_path, delay):
    """After kill -9 the content is whole or not found, and the next writer succeeds."""
    process = writer(tmp_path, 1)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.stdout.close()

    data = random.Random(1).randbytes(SIZE)
    store = LocalStore(tmp_path)
    try:
        assert store.get(digest_of(data), SIZE, SIZE) == data
    except NotFound:
        assert not store.has(digest_of(data), SIZE)
    assert store.get(store.put(data), SIZE, SIZE) == data
