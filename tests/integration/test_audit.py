"""The audit of a task: all holds on an honest record, and no changed byte goes unseen."""

import dataclasses
from contextlib import ExitStack

import pytest
from chain_game import DEFINITION, POOL, SHAPES, TERMS, Game

from flockllm.adapter import Adapter
from flockllm.audit import Replay, audit
from flockllm.chain.devnet import Devnet
from flockllm.chain.task import Task
from flockllm.errors import AuditFailed
from flockllm.rounds import Attest, Duty, Outcome, Phase, Propose, Publish, Reveal, Verdict, Vote
from flockllm.store import cid_of


def play_with_faults(game):
    """Seven people, five rounds: all that can go wrong in a round, and everybody leaves."""
    game.register()
    late = game.players[-1]
    late.task.exit()
    late.task.claim()
    game.token.mint(game.creator.address, 5)
    game.task.fund(5)

    def drawn(round_):
        game.play(lambda state: state.round == round_ and state.phase == 2)

    drawn(1)  # a proposer abstains; a voter contradicts the others and attests nothing
    game.seat(1, voter=False).refuses.add((1, "abstain"))
    for n, opinion in enumerate([(500, 500), (500, 500), (500, -500)]):
        game.seat(1, voter=True, at=n).scores[1] = opinion
    game.seat(1, voter=True, at=2).refuses.add((1, Attest))
    drawn(2)  # a proposer does nothing, another commits and is silent; the round is void
    game.seat(2, voter=False).refuses.add((2, Propose))
    game.seat(2, voter=False, at=1).refuses.add((2, Publish))
    drawn(3)  # one voter does nothing, one does not reveal: too few, void
    game.seat(3, voter=True).refuses.add((3, Vote))
    game.seat(3, voter=True, at=1).refuses.add((3, Reveal))
    drawn(4)  # one update is condemned, the other is nothing: kept
    for n in range(3):
        game.seat(4, voter=True, at=n).scores[4] = (-700, 0)
    game.play()
    for player in game.players[:3]:
        player.task.exit()
        player.task.claim()
    game.task.withdraw_rest()


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """A finished task in which nearly everything happened that can."""
    folder = tmp_path_factory.mktemp("audited")
    terms = dataclasses.replace(TERMS, rounds=5, voters=3)
    with Devnet.start(folder / "chain") as devnet, ExitStack() as stack:
        game = Game(folder, devnet, stack, terms=terms, players=7, spare=terms.bond)
        play_with_faults(game)
        yield game


def test_the_game_had_all_the_faults_it_was_meant_to_have(game):
    """Else the tests below would test less than they say."""
    outcomes = [game.task.result(n).outcome for n in range(1, 6)]
    assert outcomes == [
        Outcome.ADOPTED,
        Outcome.VOID,
        Outcome.VOID,
        Outcome.KEPT,
        Outcome.ADOPTED,
    ]
    seats = [seat for n in range(1, 6) for seat in game.task.seats(n)]
    assert {seat.duty for seat in seats} == set(Duty)
    assert {Verdict.HARMFUL, Verdict.NEUTRAL, Verdict.ACCEPTED} <= {s.verdict for s in seats}
    names = {event.name for event in game.task.events()}
    assert {"Exited", "Claimed", "Abstained", "RestWithdrawn", "SeatSettled"} <= names


def test_an_honest_record_holds(game):
    """Every statement of every round, told one by one."""
    told = list(audit(game.task, game.store))
    for number in range(1, 6):
        assert sum(line.startswith(f"round {number}: ") for line in told) >= 4
    assert "VOID" in " ".join(told)
    assert told[-1].startswith("the global adapter bafkrei")


def changed(value):
    """The same kind of value with something changed: each bit would do."""
    match value:
        case bool():
            return not value
        case int():
            return value ^ 1
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case str():
            return "0x" + "00" * 20
        case tuple():
            return (*value[1:], value[0])
    raise AssertionError(f"what is {value!r}?")


def inconsequential(event, name):
    """Names that nothing follows from: who gave money away, and a keeper that got nothing."""
    gift = (event.name, name) == ("Funded", "who")
    return gift or (name == "keeper" and not event.args["keeper_paid"])


def test_no_changed_field_of_any_event_goes_unseen(game):
    """Each value of each event, changed alone, is found: by a rule, or by the contract's state."""
    events = list(game.task.events())
    unseen = []
    for place, event in enumerate(events):
        for name, value in event.args.items():
            if inconsequential(event, name):
                continue
            forged = dataclasses.replace(event, args={**event.args, name: changed(value)})
            try:
                replayed(game, [*events[:place], forged, *events[place + 1 :]])
                unseen.append((event.name, name))
            except AuditFailed:
                pass
    assert unseen == []


def test_no_missing_or_doubled_event_goes_unseen(game):
    """Neither less nor more than what happened."""
    events = list(game.task.events())
    unseen = []
    for place, event in enumerate(events):
        after = events[place + 1 :]
        for what, forged in {
            "missing": [*events[:place], *after],
            "doubled": [*events[:place], event, event, *after],
        }.items():
            try:
                replayed(game, forged)
                unseen.append((event.name, what))
            except AuditFailed:
                pass
    assert unseen == []


class Remembered(Task):
    """The same task, with answers kept: hundreds of audits of one record ask the same things."""

    def __init__(self, task):
        super().__init__(task.connection, task.address)
        self._kept = {}

    def _read(self, function, *args, block=None):
        key = function, args, block
        if key not in self._kept:
            self._kept[key] = super()._read(function, *args, block=block)
        return self._kept[key]


@pytest.fixture(autouse=True, scope="module")
def remembering(game):
    """Blocks and views are asked for once."""
    task, block, blocks = Remembered(game.task), game.connection.block, {}
    balance = task.token.balance(task.address)
    task.token.balance = lambda _: balance
    game.connection.block = lambda number: (
        blocks.setdefault(number, None) or blocks.update({number: block(number)}) or blocks[number]
    )
    game.remembered = task


def replayed(game, events):
    """Plays a record again and holds it against the contract."""
    replay = Replay(game.remembered)
    for event in events:
        replay.apply(event)
    list(replay.check_contract())


@pytest.fixture
def flip(game):
    """Flips a byte of stored content; it is put back after the test."""
    kept = {}

    def flip(digest, size, at):
        path = game.store.folder / cid_of(digest, size)
        data = kept.setdefault(path, path.read_bytes())
        path.chmod(0o644)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])

    yield flip
    for path, data in kept.items():
        path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 60, -2])
def test_a_flipped_byte_in_an_accepted_update_is_found(game, flip, at):
    """In its header, its shifts or its values; the round is named."""
    seat = next(s for s in game.task.seats(5) if s.verdict == Verdict.ACCEPTED)
    flip(seat.digest, seat.size, at % seat.size)
    with pytest.raises(AuditFailed, match=r"round 5: update \d was altered"):
        list(audit(game.task, game.store))


def test_a_flipped_byte_in_the_aggregate_is_found(game, flip):
    """The global adapter that people download."""
    flip(game.state().adapter, len(Adapter.zeros(SHAPES).to_bytes()), 200)
    with pytest.raises(AuditFailed, match=r"the adapter .* cannot be had"):
        list(audit(game.task, game.store))


def test_a_flipped_byte_in_the_definition_is_found(game, flip):
    """What everybody trained by."""
    flip(game.spec, len(DEFINITION.to_bytes()), 5)
    with pytest.raises(AuditFailed, match="definition cannot be read"):
        list(audit(game.task, game.store))


def test_an_adapter_that_the_updates_do_not_give_is_found(game, monkeypatch):
    """All voters together may adopt anything; the audit says so."""
    monkeypatch.setattr("flockllm.audit.RULES", {"mean": lambda current, updates, weights: current})
    with pytest.raises(AuditFailed, match="is not what its"):
        list(audit(game.task, game.store))


def test_a_task_that_still_runs_can_be_audited(tmp_path):
    """So far so good, in the middle of a round."""
    with Devnet.start(tmp_path / "chain") as devnet, ExitStack() as stack:
        game = Game(tmp_path, devnet, stack)
        assert len(list(audit(game.task, game.store))) >= 4
        game.register()
        game.play(lambda state: state.round == 2 and state.phase == 4)
        told = list(audit(game.task, game.store))
        assert any("round 1: 4 of 4 seats settled" in line for line in told)
        assert game.token.balance(game.task.address) == POOL + 4 * TERMS.bond


def test_who_never_shows_up_is_retired_and_may_come_back(tmp_path):
    """Three no-shows in a row, out of the list, back by `reactivate`: as the events say.

    As many participants as seats, so that the one who is gone is drawn every time.
    """
    terms = dataclasses.replace(TERMS, rounds=5, voters=3, slash_no_show=0)
    with Devnet.start(tmp_path / "chain") as devnet, ExitStack() as stack:
        game = Game(tmp_path, devnet, stack, terms=terms, players=5)
        game.register()
        gone = game.players[0]
        gone.refuses = {(n, duty) for n in range(1, 6) for duty in (Propose, Vote)}
        game.play(lambda state: state.active < 5 or state.phase == Phase.FINISHED)
        assert "Retired" in {event.name for event in game.task.events()}
        list(audit(game.task, game.store))
        gone.task.reactivate()
        game.play()
        told = list(audit(game.task, game.store))
        assert any("round 5: 5 of 5 seats settled" in line for line in told)


def test_a_task_that_found_nobody_is_audited_too(tmp_path):
    """Cancelled by its creator, the pool taken back."""
    terms = dataclasses.replace(TERMS, idle_timeout=1)
    with Devnet.start(tmp_path / "chain") as devnet, ExitStack() as stack:
        game = Game(tmp_path, devnet, stack, terms=terms)
        game.players[0].task.register(terms.bond)
        game.connection.call("evm_increaseTime", 2)
        game.connection.call("evm_mine")
        game.task.cancel()
        game.task.withdraw_rest()
        game.task.claim()
        told = list(audit(game.task, game.store))
        assert any(line.startswith("the task holds 10.00") for line in told)
