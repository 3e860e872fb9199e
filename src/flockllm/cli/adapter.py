"""`flockllm adapter pull`: what a task has learned so far."""

from pathlib import Path

import click

from flockllm.cli.options import network_option


@click.group()
def adapter() -> None:
    """Get the global adapter of a task."""


@adapter.command()
@click.argument("task", metavar="TASK")
@click.option("--round", "round_", type=int, help="As this round left it; default: the newest.")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("adapter"),
    show_default=True,
    help="Folder to write.",
)
@network_option
def pull(task: str, round_: int | None, out: Path, network: str) -> None:
    """Write TASK's global adapter to a folder that PEFT loads.

    The bytes are checked against the digest on chain, whoever they come from:

    \b
        from peft import PeftModel
        model = PeftModel.from_pretrained(base_model, "adapter")
    """
    from flockllm.config import find_network
    from flockllm.wiring import open_connection, open_content, open_task, pull_adapter

    found = find_network(network)
    with open_connection(found) as connection:
        contract = open_task(connection, task)
        cid = pull_adapter(contract, open_content(found), out, round_)
    click.echo(f"{out}: adapter {cid}")
