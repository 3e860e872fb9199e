"""`flockllm audit`: compute a task again, and see whether it was as the chain says."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flockllm.cli.options import network_option

if TYPE_CHECKING:
    from flockllm.chain.rpc import Connection
    from flockllm.config import Network


@click.command()
@click.argument("task", metavar="TASK|DIR")
@network_option
def audit(task: str, network: str) -> None:
    """Compute every round of TASK again, from the chain's events and the store.

    Seats from the seed, verdicts from the revealed scores, payments from the verdicts, the
    adapter from the published updates. Says what holds and the first thing that does not; the
    exit code is 0 if all holds.

    DIR is the folder of a finished `flockllm demo` or `devnet`, whose chain is served from a copy.
    """
    from flockllm.audit import audit as audited
    from flockllm.config import find_network
    from flockllm.wiring import open_content, open_task

    if Path(task).is_dir():
        network, task = str(Path(task) / "network.toml"), _task_of(Path(task))
    found = find_network(network)
    count = 0
    with _chain(found, network) as connection:
        for statement in audited(open_task(connection, task), open_content(found)):
            click.echo(f"{click.style('holds', fg='green')}  {statement}")
            count += 1
    click.echo(f"All {count} statements hold.")


@contextmanager
def _chain(found: "Network", name: str) -> Iterator["Connection"]:
    """The network's node, or a copy of its chain if that has ended."""
    from flockllm.chain.devnet import STATE, is_running, kept_chain
    from flockllm.chain.rpc import connect
    from flockllm.config import network_path
    from flockllm.wiring import open_connection

    folder = network_path(name).parent / "chain"
    if (folder / STATE).exists() and not is_running(folder):
        with kept_chain(folder) as devnet, connect(devnet.rpc_url, found.chain_id) as connection:
            yield connection
    else:
        with open_connection(found) as connection:
            yield connection


def _task_of(folder: Path) -> str:
    """The task of a demo's report."""
    try:
        return str(json.loads((folder / "report.json").read_text())["task"])
    except (OSError, ValueError, KeyError, TypeError):
        raise click.BadParameter(
            f"{folder} has no report of a finished demo: pass the task's address, and its network "
            f"with --network {folder / 'network.toml'}"
        ) from None
