"""Own model code, written from its documented contract alone, through a whole task."""

import shutil
from pathlib import Path

import pytest
from network import network

from flockllm.node.own import gain
from flockllm.rounds import Duty, Outcome, Phase, Verdict
from flockllm.sandbox import pack
from flockllm.store import cid_of
from flockllm.task import Code, Definition
from flockllm.wiring import open_content, pull_adapter

MODEL = Path(__file__).parents[2] / "examples" / "own_model"

needs_sandbox = pytest.mark.skipif(
    not shutil.which("bwrap"), reason="bubblewrap is not installed: apt-get install bubblewrap"
)


def packed(store, tmp_path):
    """A definition whose code is the example."""
    archive = tmp_path / "image.tar"
    pack(MODEL, archive)
    data = archive.read_bytes()
    code = Code(image=cid_of(store.put(data), len(data)), size=len(data), parameters=2**20)
    return Definition(name="categories", code=code)


@needs_sandbox
def test_four_sandboxed_nodes_finish_a_task(tmp_path):
    """Train, score, aggregate in the sandbox: the first round adopts, nobody is slashed."""
    with network(
        tmp_path, rounds=2, records=600, definition=lambda store: packed(store, tmp_path)
    ) as net:
        for name in net.names:
            net.start(name, extra=["--sandbox", "bubblewrap"])
        net.wait(lambda view: view.state.phase == Phase.FINISHED)

        assert net.task.result(1).outcome == Outcome.ADOPTED, net.logs()
        assert net.task.result(2).outcome in (Outcome.ADOPTED, Outcome.KEPT), net.logs()
        for seat in (*net.task.seats(1), *net.task.seats(2)):
            assert seat.duty in (Duty.DONE, Duty.ABSTAINED)
            assert seat.verdict in (Verdict.NONE, Verdict.ACCEPTED, Verdict.NEUTRAL)
        assert not any(event["slashed"] for event in net.events("SeatSettled"))
        cid = pull_adapter(net.task, open_content(net.net.network), tmp_path / "out")
        written = (tmp_path / "out" / "parameters.bin").read_bytes()
        assert cid == cid_of(net.look().state.adapter, len(written))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.5, 0.6, 2_000),
        (-2.0, -1.0, 5_000),
        (-1.0, -2.0, -10_000),
        (0.0, 0.3, 32_767),
        (0.0, -0.3, -32_767),
        (0.0, 0.0, 0),
        (1e-9, 1.0, 32_767),
    ],
)
def test_more_is_better_whatever_the_sign(before, after, expected):
    """Accuracies and minus losses both rise when they get better."""
    assert gain(before, after) == expected
