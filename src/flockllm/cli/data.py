"""`flockllm data`: looking at a data set, and dealing it out to clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flockllm.data import Allocation

STRATEGIES = ("shards", "dirichlet", "iid", "by-column")


@click.group()
def data() -> None:
    """Check data, and deal a data set out to clients."""


@data.command()
@click.argument("source", metavar="DATA")
def check(source: str) -> None:
    """Say what is in DATA, or which line of it is wrong.

    DATA is a JSON, JSONL, CSV, TSV or Parquet file, or a Hugging Face data set as org/name.
    """
    from flockllm.data import describe, read_records

    found = describe(read_records(source))
    click.echo(f"{found.records} records, {found.total} {found.unit}, longest {found.longest}")
    if found.duplicates:
        click.echo(f"{found.duplicates} repeat an earlier record word for word")
    for category, count in found.categories.items():
        click.echo(f"  {count:>8}  {category or '(no category)'}")


@data.command()
@click.argument("source", metavar="DATA")
@click.option("--clients", type=click.IntRange(min=1), required=True, help="How many to deal to.")
@click.option(
    "--diff-quantity",
    type=click.Choice(["0", "1"]),
    help="As the original: 0 is --strategy shards, 1 is --strategy dirichlet.",
)
@click.option("--strategy", type=click.Choice(STRATEGIES), help="How to deal; default: shards.")
@click.option("--column", help="The column for --strategy by-column.")
@click.option("--alpha", default=0.5, show_default=True, help="Dirichlet: small is uneven.")
@click.option("--minimum", default=40, show_default=True, help="Dirichlet: least per client.")
@click.option("--test-per-category", default=10, show_default=True, help="Size of the test set.")
@click.option("--seed", default=42, show_default=True, help="Same seed and data, same bytes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default: data/CLIENTS.")
def allocate(
    source: str,
    clients: int,
    diff_quantity: str | None,
    strategy: str | None,
    column: str | None,
    alpha: float,
    minimum: int,
    test_per_category: int,
    seed: int,
    out: Path | None,
) -> None:
    """Deal DATA out to clients: a training file each, and a test set for all.

    DATA is a JSON, JSONL, CSV, TSV or Parquet file, or a Hugging Face data set as org/name.
    """
    from flockllm.data import allocate as deal
    from flockllm.data import draw_distribution, read_records, write_allocation

    if diff_quantity and strategy:
        raise click.UsageError("--diff-quantity and --strategy say the same; give one of them")
    if (column is not None) != (strategy == "by-column"):
        raise click.UsageError("--column NAME and --strategy by-column belong together")
    if diff_quantity:
        strategy = "dirichlet" if diff_quantity == "1" else "shards"
    allocation = deal(
        read_records(source),
        clients,
        strategy or "shards",  # type: ignore[arg-type]  # click has checked the choice
        column=column or "category",
        alpha=alpha,
        seed=seed,
        minimum=minimum,
        test_per_category=test_per_category,
    )
    folder = out or Path("data", str(clients))
    write_allocation(allocation, folder)
    draw_distribution(allocation, folder / "distribution.png")
    _print_table(allocation, folder)


def _print_table(allocation: Allocation, folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from flockllm.data import describe

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("records", justify="right")
    table.add_column("categories")
    files = {f"local_training_{i}.json": own for i, own in enumerate(allocation.local)}
    files["global_training.json"] = allocation.global_training
    files["global_test.json"] = allocation.global_test
    for name, records in files.items():
        mix = describe(records).categories.items()
        text = ", ".join(f"{category or '(none)'} {count}" for category, count in mix)
        table.add_row(name, str(len(records)), text, end_section=name == list(files)[-3])
    console = Console(highlight=False)
    console.print(table)
    console.print(f"in [bold]{folder}[/], drawn in [bold]{folder / 'distribution.png'}[/]")
