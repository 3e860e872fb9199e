"""What a node takes from its own disk, with a real trainer."""

from importlib.resources import files
from types import SimpleNamespace

import pytest

from flockllm.adapter import Adapter
from flockllm.data import read_records
from flockllm.node import Journal, Node, Workbench
from flockllm.rounds import Terms, Vote
from flockllm.store import LocalStore
from flockllm.task import Definition, Lora, Training
from flockllm.train.base import load_base, tensor_list
from flockllm.train.data import tokenize
from flockllm.train.loop import Trainer

RECORDS = read_records(files("flockllm") / "assets" / "demo.json")[:16]


@pytest.fixture
def bench(tmp_path):
    """A participant's workbench with few records."""
    base, lora = load_base("flockllm-base"), Lora(rank=4)
    recipe = Training(batch=4, lr=1e-2)
    definition = Definition(
        name="test", lora=lora, training=recipe, tensors=tensor_list("flockllm-base", lora)
    )
    examples = tokenize(RECORDS, base.tokenizer)
    return Workbench(
        definition,
        SimpleNamespace(terms=Terms(proposers=2), chain_id=1, address="0x" + 40 * "1"),
        LocalStore(tmp_path / "store"),
        Trainer(base, lora, recipe, examples[:8], examples[8:]),
        Journal(tmp_path / "journal"),
        lambda round_, purpose: bytes(32),
    )


@pytest.fixture
def adapters(bench):
    """Digests of two global adapters."""
    return [
        bench.store.put(Adapter.initial(bench.shapes, bytes([i]) * 32).to_bytes()) for i in (1, 2)
    ]


def test_an_update_is_trained_once_from_each_adapter(bench, adapters):
    """After a restart the copy serves; after a reorganisation it may not be the one to publish."""
    first, other = adapters
    update = bench.train(1, first).data
    bench.trainer.train = None

    assert bench.train(1, first).data == update
    with pytest.raises(TypeError):
        bench.train(1, other)


def test_scores_are_computed_once_for_each_set_of_updates(bench, adapters):
    """Scores kept for updates that a reorganisation replaced are not sent for others."""
    current, *_ = adapters
    trained = [bench.train(round_, current).data for round_ in (1, 2)]
    updates = [(i, bench.store.put(data), len(data)) for i, data in enumerate(trained)]
    sent = []
    bench.task.commit_vote = lambda round_, commitment: sent.append(commitment)
    node = Node("0x" + 40 * "2", bench.task, None, bench, bench.journal)
    view, head = SimpleNamespace(state=SimpleNamespace(deadline=60)), SimpleNamespace(timestamp=0)

    node.act(Vote(3, current, updates[:1]), view, head)
    node.act(Vote(3, current, updates), view, head)
    bench.vote = None
    node.act(Vote(3, current, updates), view, head)

    one, both, again = sent
    assert one != both == again
