"""`flockllm claim`, `exit`, `withdraw`: take money out of a task."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flockllm.cli.options import key_option, network_option
from flockllm.errors import InvalidConfig
from flockllm.logs import set_up_logging

if TYPE_CHECKING:
    from flockllm.chain.task import Task


@contextmanager
def _acting(network: str, task: str, key_path: Path) -> "Iterator[tuple[Task, str]]":
    """The task's contract and my address, able to send."""
    set_up_logging()
    from flockllm.config import find_network
    from flockllm.wiring import open_connection, open_key, open_task

    found = find_network(network)
    key = open_key(key_path, found)
    with open_connection(found) as connection:
        yield open_task(connection, task, key, found), key.address


@click.command()
@click.argument("task", metavar="TASK")
@key_option
@network_option
def claim(task: str, key_path: Path, network: str) -> None:
    """Take out what TASK has paid you. Your stake stays, and so does your place."""
    from flockllm.wiring import take_out

    with _acting(network, task, key_path) as (contract, me):
        take_out(contract, me, leave=False)


@click.command("exit")
@click.argument("task", metavar="TASK")
@key_option
@network_option
def exit_(task: str, key_path: Path, network: str) -> None:
    """Leave TASK and take out your stake and what you earned.

    You cannot leave while you hold a seat in the running round or a seat that is not settled.
    """
    from flockllm.wiring import take_out

    with _acting(network, task, key_path) as (contract, me):
        if not contract.look(me).me.registered:
            raise InvalidConfig(f"{me} is no participant of this task: `claim` takes out the rest")
        take_out(contract, me, leave=True)


@click.command()
@click.argument("task", metavar="TASK")
@key_option
@network_option
def withdraw(task: str, key_path: Path, network: str) -> None:
    """Take out what is left of the pool of a finished or cancelled TASK that you created.

    A task that has waited too long for participants is cancelled first.
    """
    from flockllm.rounds import Phase
    from flockllm.wiring import take_out

    with _acting(network, task, key_path) as (contract, me):
        if contract.creator != me:
            raise InvalidConfig(f"only the task's creator {contract.creator} can withdraw")
        if contract.look(me).state.phase == Phase.IDLE:
            contract.cancel()
        contract.withdraw_rest()
        take_out(contract, me, leave=False)
