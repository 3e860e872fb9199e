"""`flockllm join`: take part in a task."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flockllm.cli.options import key_option, log_options, network_option
from flockllm.logs import set_up_logging

if TYPE_CHECKING:
    from flockllm.node.outside import Progress


@click.command()
@click.argument("task", metavar="TASK")
@click.option(
    "--data",
    required=True,
    metavar="FILE|HUB-ID",
    help="Your records: JSON, JSONL, CSV or Parquet with instruction, response and, if you like, "
    "context and category. They never leave this machine.",
)
@key_option
@network_option
@click.option(
    "--base-model",
    default="",
    metavar="DIR",
    help="Where the task's base model is on this machine, if not where the task says.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 or balanced.")
@click.option(
    "--stake", default="", metavar="TOKENS", help="What to stake; default: exactly the bond."
)
@click.option(
    "--top-up",
    default="0",
    show_default=True,
    metavar="TOKENS",
    help="The most to add after slashes. Below the bond you are not drawn.",
)
@click.option(
    "--sandbox",
    type=click.Choice(["bubblewrap", "podman", "bare"]),
    help="What holds own model code of a task that brings some; default: what is installed. "
    "bare runs it unprotected.",
)
@click.option("--exit", "leave", is_flag=True, help="Take the stake out too when the task is done.")
@log_options
def join(
    task: str,
    data: str,
    key_path: Path,
    network: str,
    base_model: str,
    device: str,
    stake: str,
    top_up: str,
    sandbox: Literal["bubblewrap", "podman", "bare"] | None,
    leave: bool,
    verbose: bool,
    log_json: bool,
) -> None:
    """Take part in TASK until it is done: stake, train, vote, settle, claim.

    TASK is the address that `flockllm task create` printed. Data and model are checked before
    any stake moves. Stop it whenever you like, and run the same command again to go on: a seat
    is only lost when a deadline passes.
    """
    set_up_logging(verbose=verbose, log_json=log_json)
    from flockllm.config import find_network
    from flockllm.task import tokens
    from flockllm.wiring import Part, participate

    part = Part(
        network=find_network(network),
        task=task,
        data=data,
        key=key_path,
        base_model=base_model,
        device=device,
        stake=tokens(stake, "--stake") if stake else 0,
        top_up=tokens(top_up, "--top-up"),
        sandbox=sandbox or "",
        leave=leave,
    )
    with progress_bar() as progress:
        participate(part, progress=progress)


@contextmanager
def progress_bar() -> "Iterator[Progress | None]":
    """A bar for each round's training, on a terminal; nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        Remaining(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("training", visible=False, loss=0.0)

        def report(step: int, steps: int, loss: float) -> None:
            bars.update(bar, completed=step, total=steps, loss=loss, visible=step < steps)

        yield report
