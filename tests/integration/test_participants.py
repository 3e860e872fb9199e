"""Four participants as processes, a real chain, a real store: whole tasks, and kill -9."""

import random
from collections import Counter

import pytest
from network import duties_sent, network

from flockllm.adapter import Adapter, Update
from flockllm.aggregate import RULES
from flockllm.rounds import Duty, Outcome, Phase, Verdict
from flockllm.wiring import open_content, pull_adapter, read_adapter, read_definition

PHASES = [Phase.TRAIN, Phase.PUBLISH, Phase.EVALUATE, Phase.REVEAL, Phase.ATTEST]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A task of two rounds that four participants have played to its end."""
    with network(tmp_path_factory.mktemp("finished"), rounds=2) as net:
        for name in net.names:
            net.start(name, extra=["--exit"])
        net.wait(lambda view: view.state.phase == Phase.FINISHED)
        for person in net.people.values():
            assert person.wait(60) == 0, net.logs()
        yield net


def test_every_round_adopts_a_better_adapter(finished):
    """Four honest participants with like data accept each other's updates."""
    for number in (1, 2):
        assert finished.task.result(number).outcome == Outcome.ADOPTED, finished.logs()
        for seat in finished.task.seats(number):
            assert seat.duty == Duty.DONE
            assert seat.voter or seat.verdict == Verdict.ACCEPTED


def test_the_adapter_is_what_its_updates_give(finished):
    """Anyone can compute the adapter on chain from the published updates."""
    store = open_content(finished.net.network)
    definition = read_definition(finished.task, store)
    adapter = Adapter.initial(definition.tensors, bytes.fromhex(definition.seed))
    for number in (1, 2):
        seats = [s for s in finished.task.seats(number) if s.verdict == Verdict.ACCEPTED]
        updates = [
            Update.from_bytes(
                store.get(s.digest, s.size, s.size),
                definition.tensors,
                definition.aggregation.codec,
            )
            for s in seats
        ]
        rule = RULES[definition.aggregation.rule]
        adapter = rule(adapter, updates, [s.weight for s in seats])
    on_chain = finished.look().state.adapter
    assert adapter == read_adapter(definition, store, on_chain)


def test_the_money_adds_up(finished):
    """What went in is in wallets and pool; after everybody left, the task holds only the pool."""
    state = finished.look().state
    token = finished.task.token
    paid = sum(event["paid"] for event in finished.events("SeatSettled"))
    assert paid > 0
    assert token.balance(finished.task.address) == state.pool
    assert state.allotted == 0
    assert state.pool + paid == 1000 * 10**18


def test_each_participant_sends_each_call_once(finished):
    """No duty is repeated: not one transaction too many."""
    sent = Counter(duties_sent(finished))
    assert len(sent) == 4 + 2 * (2 * 2 + 2 * 3)
    assert max(sent.values()) == 1


def test_the_adapter_loads_in_peft_with_the_same_loss(finished, tmp_path):
    """`adapter pull` gives what PEFT loads, and the model then has the loss that we measured."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from flockllm.data import read_records
    from flockllm.train.base import load_base, locate
    from flockllm.train.data import tokenize
    from flockllm.train.loop import Trainer

    store = open_content(finished.net.network)
    definition = read_definition(finished.task, store)
    pull_adapter(finished.task, store, tmp_path / "adapter")
    base = load_base("flockllm-base")
    records = read_records(finished.net.folder / "data" / "global_test.json")
    examples = tokenize(records, base.tokenizer)
    trainer = Trainer(base, definition.lora, definition.training, [], examples)
    adapter = read_adapter(definition, store, finished.look().state.adapter)
    ours = trainer.loss(adapter.floats())

    plain = AutoModelForCausalLM.from_pretrained(locate("flockllm-base"), dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for example in examples:
            tokens = torch.tensor(example.tokens, dtype=torch.long)[None]
            labels = tokens.clone()
            labels[0, : example.start] = -100
            total += model(tokens, labels=labels).loss.item() * example.learned
            count += example.learned
    assert ours == pytest.approx(total / count, rel=1e-4)
    assert ours < trainer.loss(None)


@pytest.mark.parametrize("seed", [1])
def test_a_killed_participant_goes_on_where_it_was(tmp_path, seed):
    """kill -9 in any phase, started again before the deadline: nothing lost, nothing sent twice."""
    survive_kills(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_killed_participants_go_on_with_many_seeds(tmp_path, seed):
    """The same with many random phases and victims."""
    survive_kills(tmp_path, seed)


def survive_kills(tmp_path, seed, rounds=3):
    """In each round kills a random participant in a random phase, and starts it again."""
    random_ = random.Random(seed)
    with network(tmp_path, rounds=rounds, train_seconds=600, publish_seconds=600) as net:
        for name in net.names:
            net.start(name)
        for number in range(1, rounds + 1):
            phase = random_.choice(PHASES)
            net.wait(lambda view, n=number, p=phase: (view.state.round, view.state.phase) >= (n, p))
            victim = random_.choice(net.names)
            net.kill(victim)
            net.start(victim)
        net.wait(lambda view: view.state.phase == Phase.FINISHED)
        for person in net.people.values():
            assert person.wait(60) == 0, net.logs()

        settled = net.events("SeatSettled")
        assert len(settled) == 4 * rounds
        assert not any(event["slashed"] for event in settled), net.logs()
        assert all(net.task.result(n).outcome == Outcome.ADOPTED for n in range(1, rounds + 1))
        twice = [call for call, count in Counter(duties_sent(net)).items() if count > 1]
        assert not twice


def test_a_round_closes_without_a_participant_that_is_gone(tmp_path):
    """Killed and not started again: its phase ends at the deadline, and it pays for the no-show."""
    with network(tmp_path, rounds=1, train_seconds=25, evaluate_seconds=60) as net:
        for name in net.names:
            net.start(name)
        view = net.wait(lambda view: view.state.phase == Phase.TRAIN)
        victim = next(seat.who for seat in view.seats if not seat.voter)
        net.kill(net.name(victim))
        net.wait(lambda view: view.state.phase == Phase.FINISHED)
        result = net.task.result(1)
        seats = {seat.who: seat for seat in net.task.seats(1)}

        if seats[victim].duty == Duty.DRAWN:  # killed before it had committed
            net.wait(
                lambda _: any(e["who"] == victim for e in net.events("SeatSettled")), seconds=60
            )
            slashed = {e["who"]: e["slashed"] for e in net.events("SeatSettled")}
            assert slashed[victim] == net.task.terms.bond // 100
        assert result.outcome in (Outcome.ADOPTED, Outcome.KEPT)
