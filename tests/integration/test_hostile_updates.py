"""What a stranger may publish instead of an update: every honest voter scores it INVALID."""

import pickle
import resource
import struct
import time
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from network import network

from flockllm.adapter import Adapter, Update, max_bytes
from flockllm.data import read_records
from flockllm.node import Journal, Workbench
from flockllm.rounds import INVALID, Duty, Phase, Terms, Verdict
from flockllm.store import LocalStore, digest_of
from flockllm.task import Aggregation, Definition
from flockllm.train.base import load_base, tensor_list
from flockllm.train.data import tokenize
from flockllm.train.loop import Trainer

CODEC = Aggregation().codec


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A voter's workbench with a real base model, real records and a real store."""
    folder = tmp_path_factory.mktemp("voter")
    base = load_base("flockllm-base")
    definition = Definition(
        name="test", tensors=tensor_list("flockllm-base", Definition(name="").lora)
    )
    from network import DEMO

    examples = tokenize(read_records(DEMO)[::100], base.tokenizer)
    trainer = Trainer(base, definition.lora, definition.training, [], examples)
    return Workbench(
        definition,
        SimpleNamespace(terms=Terms(proposers=2)),
        LocalStore(folder / "store"),
        trainer,
        Journal(folder / "journal"),
        lambda round_, purpose: bytes(32),
    )


@pytest.fixture(scope="module")
def current(bench):
    """Digest of a global adapter that the store has."""
    adapter = Adapter.initial(bench.shapes, bytes(32))
    return bench.store.put(adapter.to_bytes())


@pytest.fixture(scope="module")
def honest(bench, current):
    """Bytes of an update that is one."""
    adapter = bench.adapter(current)
    random = np.random.default_rng(0)
    moved = {
        name: tensor + random.normal(0, 1e-4, tensor.shape).astype(np.float32)
        for name, tensor in adapter.floats().items()
    }
    return Update.from_floats(adapter, moved, CODEC).to_bytes(CODEC)


def in_floats(bench, value=1e-3, shape=None):
    """A well-formed safetensors file of floats, as the original's clients might send."""
    return safetensors.numpy.save(
        {name: np.full(shape or s, value, np.float32) for name, s in bench.shapes.items()}
    )


HOSTILE = {
    "wrong shapes": lambda bench, honest: in_floats(bench, shape=(3, 3)),
    "NaN in a float dtype": lambda bench, honest: in_floats(bench, np.nan),
    "trailing byte": lambda bench, honest: honest + b"\0",
    "cut off": lambda bench, honest: honest[:-1],
    "empty": lambda bench, honest: b"",
    "header of 1 GB": lambda bench, honest: struct.pack("<Q", 10**9) + b"{" * 100,
    "header of 2^63": lambda bench, honest: struct.pack("<Q", 2**63) + honest[8:],
    "pickle": lambda bench, honest: pickle.dumps({"lora": 1}),
    "zero delta": lambda bench, honest: Update.from_floats(
        Adapter.zeros(bench.shapes), Adapter.zeros(bench.shapes).floats(), CODEC
    ).to_bytes(CODEC),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_update_is_scored_invalid(bench, current, honest, what):
    """Whatever the bytes are, the score is INVALID, and the honest update beside it is scored."""
    data = HOSTILE[what](bench, honest)
    digest = bench.store.put(data)
    bench.forget()

    scores = bench.vote(
        1,
        current,
        [(0, digest, len(data)), (1, bench.store.put(honest), len(honest))],
        time.time() + 30,
    )

    assert scores[0] == INVALID
    assert scores[1] != INVALID


def test_an_update_that_nobody_has_is_scored_invalid(bench, current):
    """Committed on chain and in no store: given up when the time for fetching is over."""
    scores = bench.vote(1, current, [(0, digest_of(b"nobody has me"), 1000)], time.time() + 1)

    assert scores[0] == INVALID


def test_an_update_that_claims_to_be_huge_is_not_fetched(bench, current):
    """More than the tensor list allows is refused before a byte is read, in no extra memory."""
    huge = bytes(4 * max_bytes(bench.shapes, CODEC))
    digest = bench.store.put(huge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for size in (len(huge), 2**40, 1000):  # the truth, and two lies
        bench.forget()
        assert bench.vote(1, current, [(0, digest, size)], time.time() + 1)[0] == INVALID

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown} KiB"


def test_twins_are_not_paid(bench, current, honest):
    """Two updates of one round that say the same score at most 0, both of them."""
    update = Update.from_bytes(honest, bench.shapes, CODEC)
    again = bench.adapter(current) + update
    twin = Update.from_floats(bench.adapter(current), again.floats(), CODEC).to_bytes(CODEC)
    bench.forget()

    scores = bench.vote(
        1,
        current,
        [(0, bench.store.put(honest), len(honest)), (1, bench.store.put(twin), len(twin))],
        time.time() + 30,
    )

    assert all(INVALID < score <= 0 for score in scores)


def test_a_vandal_is_slashed_and_nobody_else(tmp_path):
    """A participant that publishes a pickle: judged INVALID on chain, and the task goes on."""
    with network(tmp_path, rounds=4) as net:
        vandal = net.names[-1]
        for name in net.names[:-1]:
            net.start(name)
        net.start(
            vandal, module="flockllm.simulate.attack", extra=["--attack", "vandal", "--top-up", "9"]
        )
        net.wait(lambda view: view.state.phase == Phase.FINISHED)

        proposals = [
            (number, seat)
            for number in range(1, 5)
            for seat in net.task.seats(number)
            if not seat.voter and seat.duty == Duty.DONE
        ]
        for _, seat in proposals:
            bad = seat.who == net.address(vandal)
            assert seat.verdict == (Verdict.INVALID if bad else Verdict.ACCEPTED), net.logs()
        for event in net.events("SeatSettled"):
            assert event["who"] == net.address(vandal) or not event["slashed"]
