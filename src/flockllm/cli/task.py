"""`flockllm task`: create a task, look at it."""

from pathlib import Path

import click

from flockllm.cli.options import key_option, network_option
from flockllm.cli.pack import pack
from flockllm.logs import set_up_logging


@click.group()
def task() -> None:
    """Create a task, or show what one trains."""


task.add_command(pack)


@task.command()
@click.argument("path", metavar="TASK.TOML", type=click.Path(path_type=Path))
@key_option
@network_option
def create(path: Path, key_path: Path, network: str) -> None:
    """Check TASK.TOML, publish what it defines, and deploy and fund its contract.

    Prints the task's address, which participants join by. See `examples/task.toml` for all
    settings with their defaults.
    """
    set_up_logging()
    from flockllm.config import find_network
    from flockllm.task import TaskFile, in_tokens
    from flockllm.wiring import new_task, open_connection, open_key

    file, found = TaskFile.read(path), find_network(network)
    with open_connection(found) as connection:
        key = open_key(key_path, found)
        address, cid = new_task(connection, found, key, file)
    click.echo(f"task        {address}\ndefinition  {cid}\npool        {in_tokens(file.pool)}")
    click.echo(f"\nTo take part:\n  flockllm join {address} --data FILE --key FILE", err=True)


@task.command()
@click.argument("address", metavar="TASK")
@network_option
def show(address: str, network: str) -> None:
    """Print the definition and the terms of TASK as JSON."""
    import json
    from dataclasses import asdict

    from flockllm.config import find_network
    from flockllm.wiring import open_connection, open_content, open_task, read_definition

    found = find_network(network)
    with open_connection(found) as connection:
        contract = open_task(connection, address)
        definition = read_definition(contract, open_content(found))
        shown = json.loads(definition.to_bytes()) | {"terms": asdict(contract.terms)}
    click.echo(json.dumps(shown, indent=2))
