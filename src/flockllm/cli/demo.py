"""`flockllm demo`: the whole system on this machine."""

from pathlib import Path

import click

from flockllm.cli.options import log_options
from flockllm.logs import set_up_logging


@click.command()
@click.option("--participants", default=4, show_default=True, help="Processes that take part.")
@click.option("--rounds", default=4, show_default=True)
@click.option("--proposers", default=2, show_default=True, help="Drawn each round to train.")
@click.option("--voters", default=2, show_default=True, help="Drawn each round to score.")
@click.option("--stake", default="10", show_default=True, metavar="TOKENS")
@click.option("--pool", default="1000", show_default=True, metavar="TOKENS")
@click.option(
    "--data",
    default="",
    metavar="FILE|HUB-ID",
    help="Records with instruction, context, response, category, to deal out to the participants. "
    "Default: generated ones that come with this package.",
)
@click.option(
    "--base-model",
    default="flockllm-base",
    show_default=True,
    metavar="DIR|HUB-ID",
    help="What to fine-tune: a folder, org/name@commit on the hub, or the packaged small model.",
)
@click.option("--lr", type=float, help="Learning rate; default: 0.05 for the packaged model.")
@click.option("--batch", type=click.IntRange(1), help="Records per step.")
@click.option(
    "--attackers",
    default=0,
    show_default=True,
    help="How many participants, the last ones, publish poisoned updates.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for everything: adapter, report, picture, logs, chain state and store.",
)
@click.option("--force", is_flag=True, help="Replace an earlier run in --out.")
@log_options
def demo(
    participants: int,
    rounds: int,
    proposers: int,
    voters: int,
    stake: str,
    pool: str,
    data: str,
    base_model: str,
    lr: float | None,
    batch: int | None,
    attackers: int,
    out: Path,
    force: bool,
    verbose: bool,
    log_json: bool,
) -> None:
    """Run the whole system on this machine: a chain, a store, and a process for each participant.

    Defaults are the original FLockLLM demo: four participants, two propose and two vote, four
    rounds, stake 10, pool 1000. Ends with a report, a picture and the adapter in OUT.
    """
    set_up_logging(verbose=verbose, log_json=log_json)
    import dataclasses
    import shutil

    from flockllm.simulate.demo import Demo, run_demo
    from flockllm.task import PACKAGED_BASE, Training, tokens

    if force and (out / "network.toml").exists():
        shutil.rmtree(out)
    ref, _, revision = base_model.partition("@")
    training = Demo(out=out).training if ref == PACKAGED_BASE else Training()
    training = dataclasses.replace(training, lr=lr or training.lr, batch=batch or training.batch)
    result = run_demo(
        Demo(
            out=out,
            data=data,
            participants=participants,
            rounds=rounds,
            proposers=proposers,
            voters=voters,
            stake=tokens(stake, "--stake"),
            pool=tokens(pool, "--pool"),
            base_model=ref,
            revision=revision,
            attackers=attackers,
            training=training,
        ),
    )
    click.echo((out / "report.md").read_text())
    click.echo(f"Everything is in {out}: report.md, rounds.png, report.json, adapter/, logs/.")
    if not result["money_adds_up"]:
        raise click.ClickException("the money does not add up: this is a bug, please report it")
