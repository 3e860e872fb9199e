"""The whole system in small: a chain, a store, and participants as processes of their own."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flockllm.chain.task import Task
from flockllm.config import state_folder
from flockllm.data import Record, allocate, describe, read_records, write_allocation
from flockllm.errors import FlockError, InvalidConfig
from flockllm.node import read_record
from flockllm.rounds import Phase, RoundResult, Seat, Terms
from flockllm.simulate.localnet import Localnet, localnet
from flockllm.simulate.processes import Participant, PeakMemory, check, start, stop, warm_up
from flockllm.task import (
    DECIMALS,
    PACKAGED_BASE,
    Definition,
    Model,
    TaskFile,
    Training,
    falling,
)
from flockllm.wiring import (
    NOBODY,
    new_task,
    open_content,
    open_task,
    pull_adapter,
    read_definition,
)

log = logging.getLogger(__name__)

TOP_UP = 100
"""Tokens that each participant may add after slashes, so that a slashed attacker stays in."""

STRONG_MARGIN = 2_000
"""A fifth: participants whose data differs this much do each other no harm on purpose."""

PHASES = {"train": 900, "publish": 120, "evaluate": 600, "reveal": 120, "attest": 600}
"""Seconds; phases end early when all have acted."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What `flockllm demo` is told; the defaults are the original's demo."""

    out: Path
    data: str = ""
    """A file of records; empty for the generated ones in the package."""
    participants: int = 4
    rounds: int = 4
    proposers: int = 2
    voters: int = 2
    stake: int = 10 * DECIMALS
    pool: int = 1_000 * DECIMALS
    base_model: str = PACKAGED_BASE
    revision: str = ""
    attackers: int = 0
    training: Training = field(default_factory=lambda: Training(lr=5e-2, batch=4))

    def task_file(self) -> TaskFile:
        """The task that this demo runs."""
        return TaskFile(
            Definition(
                name="demo",
                model=Model(base=self.base_model, revision=self.revision),
                training=replace(self.training, decay=falling(self.rounds)),
            ),
            Terms(
                rounds=self.rounds,
                proposers=self.proposers,
                voters=self.voters,
                bond=self.stake,
                strong_margin=STRONG_MARGIN,
                score_cap=STRONG_MARGIN,
                **{f"{phase}_seconds": seconds for phase, seconds in PHASES.items()},
            ),
            self.pool,
        )


@dataclass(frozen=True)
class Run:
    """A demo that has come to its end: what the report is made of."""

    demo: Demo
    net: Localnet
    task: Task
    definition: Definition
    names: Mapping[str, str]
    """Participants' names by address."""
    honest: Mapping[str, bool]
    rounds: list[tuple[RoundResult, tuple[Seat, ...]]]
    records: Mapping[str, list[dict[str, Any]]]
    """The record of each participant's run, by address."""
    test: list[Record]
    wall_seconds: float
    peak_memory_bytes: int


Show = Callable[[Task, Mapping[str, str]], None]
"""Called again and again while the demo runs."""


def run_demo(demo: Demo, show: Show | None = None) -> dict[str, Any]:
    """Runs a demo to its end and writes `demo.out`; returns the report.

    A script that calls this does so below `if __name__ == "__main__":`, as participants are started
    by Python's multiprocessing, which imports the script again.

    Raises:
        FlockError: the settings cannot work, or a participant failed; its log says why.
    """
    if demo.participants < demo.proposers + demo.voters:
        raise InvalidConfig(
            f"{demo.proposers} proposers and {demo.voters} voters need at least "
            f"{demo.proposers + demo.voters} participants, got {demo.participants}"
        )
    if demo.attackers > demo.participants:
        raise InvalidConfig("there cannot be more attackers than participants")
    warm_up()
    records = read_records(demo.data or Path(__file__).parent.parent / "assets" / "demo.json")
    dealt = allocate(records, demo.participants)
    names = [f"participant-{i + 1}" for i in range(demo.participants)]
    folder = demo.out.resolve()
    if (folder / "network.toml").exists():
        raise InvalidConfig(f"{demo.out} holds an earlier run: remove it, or pass another --out")
    write_allocation(dealt, folder / "data")
    for name, own in zip(names, dealt.local, strict=True):
        log.info("%s has %d records: %s", name, len(own), _mix(own))

    began = time.monotonic()
    with PeakMemory() as memory, localnet(folder, ["creator", *names]) as net:
        # The state of the participants belongs to this run, not to this machine.
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        key = net.key("creator")
        address, cid = new_task(net.connection, net.network, key, demo.task_file())
        task = open_task(net.connection, address, key)
        log.info("task %s, definition %s", address, cid)
        people = [
            _start(demo, net, address, name, i >= demo.participants - demo.attackers)
            for i, name in enumerate(names)
        ]
        addresses = {net.key(name).address: name for name in names}
        try:
            while check(people):
                if show:
                    show(task, addresses)
                net.connection.heads(0.5)
        finally:
            stop(people)
        wall = time.monotonic() - began
        phase = task.look(NOBODY).state.phase
        if phase != Phase.FINISHED:
            raise FlockError(f"all participants ended, but the task is in {phase.name}")
        _settle_rest(task)
        if show:
            show(task, addresses)
        run = Run(
            demo,
            net,
            task,
            read_definition(task, open_content(net.network)),
            addresses,
            {a: i < demo.participants - demo.attackers for i, a in enumerate(addresses)},
            [(task.result(n), task.seats(n)) for n in range(1, demo.rounds + 1)],
            {a: read_record(state_folder(task.chain_id, task.address, a)) for a in addresses},
            dealt.global_test,
            wall,
            memory.bytes,
        )
        pull_adapter(task, open_content(net.network), folder / "adapter")
        from flockllm.simulate.report import report  # loads torch and matplotlib

        return report(run)


def _start(demo: Demo, net: Localnet, task: str, name: str, attacks: bool) -> Participant:
    """Starts one participant as `flockllm join` does, or as an attacker."""
    number = name.rpartition("-")[2]
    arguments = [
        *("join", task),
        *("--data", str(net.folder / "data" / f"local_training_{int(number) - 1}.json")),
        *("--key", str(net.key_path(name))),
        *("--network", str(net.network_file)),
        *("--top-up", str(TOP_UP)),
    ]
    module = "flockllm.cli"
    if attacks:
        module, arguments = "flockllm.simulate.attack", arguments[1:]
    # As many threads as there are cores for those who work at the same time.
    threads = max(1, (os.cpu_count() or 1) // max(demo.proposers, demo.voters))
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "XDG_STATE_HOME": str(net.folder / "state"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return start(name, module, arguments, net.folder / "logs" / f"{name}.log", environment)


def _settle_rest(task: Task) -> None:
    """Settles seats that nobody had a reason to settle, so that the money adds up."""
    for number in range(1, task.terms.rounds + 1):
        for seat in task.seats(number):
            if not seat.settled:
                task.settle(number, seat.who)


def _mix(records: list[Record]) -> str:
    return ", ".join(f"{name} {count}" for name, count in describe(records).categories.items())
