"""`flockllm host`: an API and a page for a base model and its adapters."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flockllm.cli.options import log_options, network_option
from flockllm.errors import ModelError
from flockllm.logs import set_up_logging

if TYPE_CHECKING:
    from flockllm.chain.task import Task
    from flockllm.host.sources import Hosted
    from flockllm.train.base import Base

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def what_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is hosted."""
    folder = click.Path(path_type=Path)
    options: list[Decorator] = [
        click.option(
            "--base-model",
            default="",
            metavar="DIR|HUB-ID",
            help="Default: the small one of this package, or the task's.",
        ),
        click.option(
            "--adapter",
            "adapters",
            multiple=True,
            type=folder,
            metavar="DIR",
            help="An adapter in PEFT's format; may be given several times.",
        ),
        click.option("--task", default="", metavar="TASK", help="A task's adapter, verified."),
        click.option(
            "--round",
            "round_",
            default="latest",
            show_default=True,
            metavar="N|latest",
            help="As it was after that round of the task.",
        ),
        network_option,
        click.option(
            "--lora-weights-path",
            type=folder,
            metavar="FILE",
            help="An adapter as the original saves it (.bin), read without running code.",
        ),
        click.option(
            "--lora-config-path",
            type=folder,
            metavar="DIR",
            help="The folder of its adapter_config.json.",
        ),
        click.option(
            "--prompt-template",
            default="",
            metavar="NAME|FILE",
            help="alpaca, vicuna, chat (the tokenizer's own) or a .jinja file. "
            "Default: alpaca, or the task's.",
        ),
        _flag("--load-8bit", help="Weights in 8 bits, by bitsandbytes."),
        _flag("--load-4bit", help="Weights in 4 bits, by bitsandbytes."),
        click.option(
            "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 or balanced."
        ),
        click.option("--context", default=0, help="Tokens of prompt and answer, to save memory."),
    ]
    return _all(options, command)


def where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the server listens, and for whom."""
    options: list[Decorator] = [
        click.option(
            "--address",
            "--server-name",
            default="127.0.0.1",
            show_default=True,
            help="Where to listen. Beyond this machine a key is needed; one is made if none "
            "is given.",
        ),
        click.option("--port", default=7860, show_default=True, help="0 for any."),
        click.option(
            "--auth",
            type=click.Path(dir_okay=False, path_type=Path),
            envvar="FLOCKLLM_AUTH_FILE",
            help="File with lines of KEY or NAME:PASSWORD. One of them may also stand in the "
            "environment, as FLOCKLLM_AUTH.",
        ),
        _flag("--share", "--share-gradio", help="Also publicly, through Gradio's tunnel."),
        click.option("--page/--no-page", default=True, help="The page too, or the API alone."),
        click.option("--examples", metavar="FILE", help="Data whose instructions the page offers."),
        click.option(
            "--engine",
            type=click.Choice(["own", "vllm"]),
            default="own",
            show_default=True,
            help="vllm: where a GPU and vLLM are there.",
        ),
        click.option(
            "--max-rows", default=16, show_default=True, help="Answers computed together."
        ),
        click.option("--max-waiting", default=64, show_default=True, help="Answers that may wait."),
    ]
    return _all(options, command)


def _all(options: list[Decorator], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def _flag(*names: str, help: str) -> Decorator:
    """A flag that may also be followed by true or false, as the original's are."""
    return click.option(
        *names, is_flag=False, flag_value=True, type=bool, default=False, metavar="", help=help
    )


@click.command()
@what_options
@where_options
@log_options
def host(
    base_model: str,
    adapters: tuple[Path, ...],
    task: str,
    round_: str,
    network: str,
    lora_weights_path: Path | None,
    lora_config_path: Path | None,
    prompt_template: str,
    load_8bit: bool,
    load_4bit: bool,
    device: str,
    context: int,
    address: str,
    port: int,
    auth: Path | None,
    share: bool,
    page: bool,
    examples: str | None,
    engine: str,
    max_rows: int,
    max_waiting: int,
    verbose: bool,
    log_json: bool,
) -> None:
    """Serve a base model and its adapters: an OpenAI-compatible API, and a page to compare them."""
    set_up_logging(verbose=verbose, log_json=log_json)
    if find_spec("uvicorn") is None:
        raise ModelError("hosting needs an extra: pip install 'flockllm[host]'")
    from flockllm.host.api import Api
    from flockllm.host.loading import bits_here, load
    from flockllm.host.serve import LOOPBACK, Service, Settings, Site
    from flockllm.host.vllm import Vllm

    keys = _keys(auth, public=share or address not in LOOPBACK)
    base: Base | None = None
    if task:
        bits = bits_here(load_8bit, load_4bit, device)
        hosted, base = _of_task(task, round_, network, base_model, device, bits)
    else:
        hosted = _of_files(base_model, adapters, lora_weights_path, lora_config_path)
    if prompt_template:
        hosted = hosted.with_template(prompt_template)
    weights: dict[str, Any] = {"load_8bit": load_8bit, "load_4bit": load_4bit, "context": context}
    service: Service
    if engine == "vllm":
        service = Vllm(hosted, **weights)
    else:
        loaded = load(hosted, base=base, device=device, **weights)
        service = Api.start(loaded, max_rows=max_rows, max_waiting=max_waiting)
    settings = Settings(
        address=address,
        port=port,
        keys=keys,
        page=page,
        examples=_examples(examples, hosted.base) if page else (),
    )
    site = Site(service, settings)
    click.echo(f"Models  {', '.join(model.name for model in service.models)}")
    click.echo(f"API     {site.url}/v1")
    if page:
        click.echo(f"Page    {site.url}")
    if share:
        click.echo(f"Public  {site.share()}")
    site.run()


def _of_files(
    base_model: str,
    adapters: tuple[Path, ...],
    weights: Path | None,
    config_folder: Path | None,
) -> Hosted:
    from flockllm.host.sources import Hosted, from_folder, from_legacy
    from flockllm.task import PACKAGED_BASE

    if (weights is None) != (config_folder is None):
        raise click.UsageError("--lora-weights-path and --lora-config-path belong together")
    tuned = [from_folder(folder) for folder in adapters]
    if weights and config_folder:
        tuned.append(from_legacy(weights, config_folder))
    return Hosted(base=base_model or PACKAGED_BASE, tuned=tuple(tuned))


def _of_task(
    address: str,
    round_: str,
    network: str,
    base_model: str,
    device: str,
    bits: dict[str, bool],
) -> tuple[Hosted, Base]:
    """A task's base model and adapter, each checked against the digest on chain."""
    from flockllm.config import find_network
    from flockllm.errors import InvalidConfig
    from flockllm.host.sources import from_task
    from flockllm.rounds import Outcome
    from flockllm.store import cid_of
    from flockllm.wiring import (
        NOBODY,
        open_base,
        open_connection,
        open_content,
        open_task,
        read_adapter,
        read_definition,
    )

    if round_ != "latest" and not round_.isdecimal():
        raise click.UsageError(f"--round must be a number or latest, got {round_}")
    found = find_network(network)
    with open_connection(found) as connection:
        contract, store = open_task(connection, address), open_content(found)
        definition = read_definition(contract, store)
        number = contract.look(NOBODY).state.round - 1 if round_ == "latest" else int(round_)
        result = contract.result(number) if number else None
        if result and result.outcome == Outcome.OPEN:
            raise InvalidConfig(f"round {number} is not closed")
        digest = result.adapter_after if result else contract.initial_adapter
        adapter = read_adapter(definition, store, digest)
        about = {
            "Task": contract.address,
            "Name": definition.name,
            "Round": f"{number} of {contract.terms.rounds}",
            "Adapter": cid_of(digest, len(adapter.to_bytes())),
            **_scores(contract, number),
        }
    base = open_base(definition, base_model, device=device, **bits)
    return from_task(definition, adapter.floats(), about=about), base


def _scores(contract: Task, last: int) -> dict[str, str]:
    """How the loss on voters' held-out data changed with each accepted update, round by round."""
    from statistics import median

    from flockllm.rounds import INVALID, Verdict, revealed

    lines = []
    for number in range(1, last + 1):
        seats = contract.seats(number)
        changes = []
        for at, seat in enumerate(seats):
            if not seat.voter and seat.verdict == Verdict.ACCEPTED:
                scores = [voter.scores[at] for voter in revealed(seats)]
                told = [score for score in scores if score != INVALID]
                changes.append(f"{-median(told) / 100:+.0f} %")
        if changes:
            lines.append(f"round {number}: {', '.join(changes)}")
    return {"Held-out loss": "; ".join(lines)} if lines else {}


def _keys(path: Path | None, *, public: bool) -> list[str]:
    from flockllm.host.gate import read_keys

    keys = read_keys(path) if path else []
    if key := os.environ.get("FLOCKLLM_AUTH"):
        keys.append(key)
    if public and not keys:
        keys = [secrets.token_urlsafe(16)]
        click.echo(f"Others can reach this server: the key of this run is {keys[0]}", err=True)
    return keys


def _examples(source: str | None, base: str) -> list[tuple[str, str]]:
    """The first record of each category; for the packaged model, of the packaged data."""
    from importlib.resources import files

    from flockllm.data import read_records
    from flockllm.task import PACKAGED_BASE

    if source is None and base == PACKAGED_BASE:
        source = str(files("flockllm") / "assets" / "demo.json")
    if source is None:
        return []
    first: dict[str, tuple[str, str]] = {}
    for record in read_records(source):
        if len(record.context) < 500:
            first.setdefault(record.category, (record.instruction, record.context))
    return list(first.values())[:8]
