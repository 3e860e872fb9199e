"""A real network on this machine for tests: chain, store, and participants as processes."""

import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flockllm.chain.abi import interface
from flockllm.chain.task import Task
from flockllm.config import state_folder
from flockllm.data import allocate, read_records, write_allocation
from flockllm.node import read_record
from flockllm.simulate.demo import Demo
from flockllm.simulate.localnet import localnet
from flockllm.simulate.processes import start, stop
from flockllm.wiring import NOBODY, new_task, open_content, open_task

DEMO = Path(sys.modules["flockllm"].__file__).parent / "assets" / "demo.json"


class Network:
    """Participants of one task that can be killed and started again."""

    def __init__(self, net, task: Task, names):
        self.net, self.task, self.names = net, task, names
        self.people = {}

    def start(self, name, *, module="flockllm.cli", extra=()):
        """Starts a participant, as a person would with `flockllm join`."""
        number = self.names.index(name)
        arguments = [
            *(["join"] if module == "flockllm.cli" else []),
            self.task.address,
            *("--data", str(self.net.folder / "data" / f"local_training_{number}.json")),
            *("--key", str(self.net.key_path(name))),
            *("--network", str(self.net.network_file)),
            *extra,
        ]
        environment = {"OMP_NUM_THREADS": "1", "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}
        log = self.net.folder / "logs" / f"{name}.log"
        self.people[name] = start(name, module, arguments, log, environment)

    def kill(self, name):
        """kill -9, at once."""
        self.people[name].process.kill()
        self.people[name].process.join()

    def stop(self):
        stop(list(self.people.values()))

    def address(self, name):
        return self.net.key(name).address

    def name(self, address):
        return next(n for n in self.names if self.address(n) == address)

    def look(self):
        return self.task.look(NOBODY)

    def wait(self, until, seconds=240):
        """Waits for `until(view)`, failing with the logs if it does not come."""
        end = time.monotonic() + seconds
        while not until(view := self.look()):
            assert time.monotonic() < end, f"{view.state}\n{self.logs()}"
            for person in self.people.values():
                assert person.process.exitcode in (None, 0, -9), self.logs()
            self.net.connection.heads(0.2)
        return view

    def logs(self):
        return "\n".join(
            f"== {path.name}\n{path.read_text()[-3000:]}"
            for path in sorted((self.net.folder / "logs").glob("*.log"))
        )

    def record(self, name):
        return read_record(state_folder(self.task.chain_id, self.task.address, self.address(name)))

    def events(self, name):
        return [event.args for event in self.task.events() if event.name == name]


@contextmanager
def network(tmp_path, *, participants=4, records=480, definition=None, **terms):
    """A task that nobody has joined yet, with data dealt out evenly.

    With half as many records, one of 480 scores of honest work was below zero; with these the
    lowest was a sixth of the loss.

    `definition` makes the task's definition, given the network's store.
    """
    file = Demo(out=tmp_path, participants=participants).task_file()
    defaults = {"strong_margin": 5_000, "score_cap": 5_000}
    file = replace(file, terms=replace(file.terms, **(defaults | terms)))
    step = max(1, len(read_records(DEMO)) // records)
    dealt = allocate(read_records(DEMO)[::step], participants, "iid", test_per_category=2)
    names = [f"participant-{i + 1}" for i in range(participants)]
    folder = tmp_path / "net"
    write_allocation(dealt, folder / "data")
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    try:
        with localnet(folder, ["creator", *names]) as net:
            key = net.key("creator")
            if definition:
                made = definition(open_content(net.network))
                file = replace(file, definition=made)
            address, _ = new_task(net.connection, net.network, key, file)
            running = Network(net, open_task(net.connection, address, key), names)
            try:
                yield running
            finally:
                running.stop()
    finally:
        os.environ.pop("XDG_STATE_HOME")
        if before is not None:
            os.environ["XDG_STATE_HOME"] = before


DUTIES = ("register", "commit_update", "publish_update", "commit_vote", "reveal_vote", "attest")


def duties_sent(network):
    """Every transaction that does a duty, failed ones too, as (sender, call data)."""
    connection = network.net.connection
    selectors = {selector(name) for name in DUTIES}
    blocks = (
        connection.call("eth_getBlockByNumber", hex(number), True)
        for number in range(connection.head().number + 1)
    )
    return [
        (transaction["from"], transaction["input"])
        for block in blocks
        for transaction in block["transactions"]
        if transaction["input"][:10] in selectors
    ]


def selector(name):
    """The first four bytes of a call of a function of the task, in hex."""
    task = interface("Task")
    inputs = next(len(e["inputs"]) for (n, _), e in task.functions.items() if n == name)
    zeros = {"uint256": 0, "bytes32": bytes(32)}
    entry = task.functions[name, inputs]
    return "0x" + task.encode(name, *(zeros[i["type"]] for i in entry["inputs"]))[:4].hex()
