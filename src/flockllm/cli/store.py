"""`flockllm store`: keep content, or make room without losing what a chain still names."""

import click

from flockllm.cli.options import network_option


@click.group()
def store() -> None:
    """Keep content in the network's store, or make room in it."""


@store.command()
@click.argument("cid", metavar="CID")
@network_option
def pin(cid: str, network: str) -> None:
    """Keep CID through every garbage collection."""
    from flockllm.config import find_network
    from flockllm.store import parse_cid
    from flockllm.wiring import open_content

    open_content(find_network(network)).pin(parse_cid(cid)[1])
    click.echo(f"{cid} is kept.")


@store.command()
@click.argument("cid", metavar="CID")
@network_option
def unpin(cid: str, network: str) -> None:
    """Leave CID to the next garbage collection."""
    from flockllm.config import find_network
    from flockllm.store import parse_cid
    from flockllm.wiring import open_content

    open_content(find_network(network)).unpin(parse_cid(cid)[1])
    click.echo(f"{cid} stays as long as a task names it.")


@store.command()
@click.argument("tasks", metavar="[TASK]…", nargs=-1)
@click.option("--hours", default=1.0, show_default=True, help="Younger content stays.")
@network_option
def collect(tasks: tuple[str, ...], hours: float, network: str) -> None:
    """Remove from this machine what is not pinned and no task names.

    Keeps what the network's tasks name on chain, all of them or only each TASK: definitions,
    adapters, published updates. What is kept lets everybody audit a task and compute its adapter.
    """
    from flockllm.chain.deploy import tasks as all_tasks
    from flockllm.config import find_network
    from flockllm.errors import InvalidConfig
    from flockllm.wiring import named_by, open_connection, open_content, open_task

    found = find_network(network)
    if not tasks and not found.factory:
        raise InvalidConfig("the network file names no factory: name the tasks whose content stays")
    content = open_content(found)
    with open_connection(found) as connection:
        keep: set[bytes] = set()
        for address in tasks or all_tasks(connection, found.factory):
            keep |= named_by(open_task(connection, address), content)
    removed = content.collect(keep, younger=hours * 3600)
    for cid in removed:
        click.echo(cid)
    click.echo(f"{len(removed)} removed; {len(keep)} digests are named by tasks.")
