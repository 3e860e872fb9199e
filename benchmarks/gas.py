"""Gas of every call of a round, for committees and crowds of several sizes.

    python -m benchmarks.gas            print the table and compare it with gas.json
    python -m benchmarks.gas --write    measure again and keep

Each figure is the dearest call of its kind in one round, as a whole transaction: 21 000, calldata,
execution from cold storage, less refunds. `no-shows` is the dearest way to end a phase by its
deadline: nobody of it acted, and all retire. Measured in py-evm through titanoboa.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import boa
from eth_hash.auto import keccak
from tests.contracts.play import AGGREGATE, TERMS, Play

from flockllm import rounds
from flockllm.rounds import Phase, Seat

SNAPSHOT = Path(__file__).with_name("gas.json")
COMMITTEES = [(2, 2), (4, 5), (8, 15), (16, 31), (16, 63)]
CROWDS = [0, 100, 10_000]
"""Registered participants; 0 means P + V."""
LARGEST = 8_000_000
"""No call may cost more, at any size: half of what EIP-7825 allows a transaction."""

Gas = dict[str, int]


class Meter:
    """Calls a task and keeps the dearest call of each kind."""

    def __init__(self, play: Play) -> None:
        self.play, self.gas = play, defaultdict[str, int](int)

    def call(self, name: str, *args: object, sender: str | None = None, label: str = "") -> None:
        """Makes a call and notes its gas."""
        function = getattr(self.play.task, name)
        boa.env.reset_gas_used()  # and what the last call has warmed
        function(*args, sender=sender or boa.env.eoa)
        computation = self.play.task._computation
        data = function.prepare_calldata(*args)
        used = 21_000 + sum(16 if byte else 4 for byte in data) + computation.get_gas_used()
        used -= min(computation.get_gas_refund(), used // 5)
        label = label or name
        self.gas[label] = max(self.gas[label], used)


def measure(proposers: int, voters: int, crowd: int) -> Gas:
    """Plays two rounds: one in which all act, one in which nobody does."""
    terms = replace(TERMS, rounds=9, proposers=proposers, voters=voters)
    boa.env.evm.patch.prev_hashes = [bytes([i]) * 32 for i in range(256)]
    play = Play(terms, people=0)
    meter = Meter(play)
    people = [boa.env.generate_address(f"member {i}") for i in range(max(crowd, terms.committee))]
    _enrol(play, people[:-2])
    for who in people[-2:]:
        play.give(who, terms.bond)
        meter.call("register", terms.bond, sender=who)
    seats = full_round(meter)
    for seat in seats:
        label = "settle voter" if seat.voter else "settle proposer"
        meter.call("settle", 1, seat.who, sender=seat.who, label=label)
    meter.call("claim", sender=seats[0].who)
    empty_rounds(meter)
    meter.call("exit", sender=seats[0].who)
    return dict(meter.gas)


def opened(meter: Meter) -> tuple[Seat, ...]:
    """Opens a round and draws; the seats."""
    meter.call("open_round")
    boa.env.time_travel(blocks=2, block_delta=1)
    meter.call("draw")
    return meter.play.view().seats


def full_round(meter: Meter) -> tuple[Seat, ...]:
    """Everybody acts, voters agree, the aggregate is adopted."""
    play, number = meter.play, meter.play.round
    seats = opened(meter)
    proposers = [seat.who for seat in seats if not seat.voter]
    voters = [seat.who for seat in seats if seat.voter]
    scores = rounds.pack_scores([50] * len(proposers))
    for who in proposers:
        made = play.commitment(who, play.update(who, number))
        meter.call("commit_update", number, made, sender=who)
    for who in proposers:
        opening = play.update(who, number), 393_216, play.salt(who, number)
        meter.call("publish_update", number, *opening, sender=who)
    for who in voters:
        made = play.commitment(who, rounds.word(scores))
        meter.call("commit_vote", number, made, sender=who)
    for who in voters:
        meter.call("reveal_vote", number, scores, play.salt(who, number), sender=who)
    meter.call("tally", len(proposers))
    for who in voters:
        if play.task.look(who)[0][1] == Phase.ATTEST:
            meter.call("attest", number, AGGREGATE, sender=who)
    return seats


def empty_rounds(meter: Meter) -> None:
    """Two rounds that end for want of proposers and of voters, who all retire by it."""
    play = meter.play
    for phase in (Phase.TRAIN, Phase.EVALUATE):
        seats = opened(meter)
        if phase == Phase.EVALUATE:
            play.train()
            play.publish()
        for seat in seats:
            _about_to_retire(play, seat.who)
        boa.env.time_travel(seconds=10**6)
        meter.call("advance", label="advance, no-shows")
        play.settle(play.round - 1)
        for seat in seats:
            _come_back(meter, seat.who)


def _come_back(meter: Meter, who: str) -> None:
    """Completes the bond and ends retirement."""
    me = meter.play.view(who).me
    if me.stake < meter.play.terms.bond:
        missing = meter.play.terms.bond - me.stake
        meter.play.give(who, missing)
        meter.play.task.top_up(missing, sender=who)
    if me.missed == 3:
        meter.call("reactivate", sender=who)


def _about_to_retire(play: Play, who: str) -> None:
    """Writes two no-shows into a participant's standing, bits 8 to 15: playing takes minutes."""
    slot = _slot(play, "_standings", who)
    standing = boa.env.get_storage(play.task.address, slot) & ~(255 << 8)
    boa.env.set_storage(play.task.address, slot, standing | 2 << 8)
    assert play.view(who).me.missed == 2


def _enrol(play: Play, people: list[str]) -> None:
    """Writes into storage what `register` would write for each."""
    bond, task = play.terms.bond, play.task.address
    play.token.mint(task, bond * len(people))
    for index, who in enumerate(people):
        boa.env.set_storage(task, _slot(play, "_standings", who), 1)
        boa.env.set_storage(task, _slot(play, "stakes.stake", who), bond)
        boa.env.set_storage(task, _slot(play, "stakes.deposited", who), bond)
        boa.env.set_storage(task, _slot(play, "committee.members", hex(index)), int(who, 16))
        boa.env.set_storage(task, _slot(play, "committee.place", who), index + 1)
    boa.env.set_storage(task, _slot(play, "committee.active"), len(people))
    assert play.view(people[0]).me.index == 1


def _slot(play: Play, name: str, key: str | None = None) -> int:
    """Where a variable, or a mapping's value, is stored."""
    place = play.task.compiler_data.storage_layout["storage_layout"]
    for part in name.split("."):
        place = place[part]
    slot = place["slot"]
    if key is None:
        return slot
    return int.from_bytes(keccak(rounds.word(slot) + rounds.word(int(key, 16))))


def table(measured: dict[str, Gas]) -> str:
    """The figures as Markdown, in thousands."""
    names = list(next(iter(measured.values())))
    lines = ["| P/V, N | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for size, gas in measured.items():
        figures = " | ".join(f"{gas[name] / 1000:.0f}" for name in names)
        lines.append(f"| {size} | {figures} |")
    return "\n".join(lines)


def differences(measured: dict[str, Gas], kept: dict[str, Gas]) -> list[str]:
    """What is more than 1 % off its snapshot, or 10 % where it matters who stands where.

    Leaving the list costs a little less for its last member; who that is, the draw decides, and the
    draw depends on the task's address.
    """
    spread = defaultdict(lambda: 0.01) | {"advance, no-shows": 0.1, "exit": 0.1}
    return [
        f"{size}, {name}: {gas}, in the snapshot {kept[size].get(name)}"
        for size, figures in measured.items()
        for name, gas in figures.items()
        if abs(gas - kept[size].get(name, 0)) > spread[name] * gas
    ]


def main() -> None:
    """Measures everything; fails if a figure is off the snapshot or beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep what is measured")
    parser.add_argument("--quick", action="store_true", help="small committees and crowds only")
    options = parser.parse_args()
    sizes = [
        (p, v, n)
        for p, v in (COMMITTEES[:2] if options.quick else COMMITTEES)
        for n in (CROWDS[:2] if options.quick else CROWDS)
    ]
    measured = {f"{p}/{v}, {n or p + v}": measure(p, v, n) for p, v, n in sizes}
    print(table(measured))
    largest = max((gas, size, name) for size, g in measured.items() for name, gas in g.items())
    print(f"\nlargest call: {largest[0]:,} gas ({largest[2]} at {largest[1]})")
    if options.write:
        SNAPSHOT.write_text(json.dumps(measured, indent=1) + "\n")
    problems = differences(measured, json.loads(SNAPSHOT.read_text()))
    if largest[0] > LARGEST:
        problems.append(f"more than {LARGEST:,} gas in one call")
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
