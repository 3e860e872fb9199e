"""Options that several verbs share, each defined once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def network_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--network, for every verb that talks to a chain."""
    return click.option(
        "--network",
        default="",
        envvar="FLOCKLLM_NETWORK",
        metavar="NAME|FILE",
        help="Which chain and store: a network file. Default: the devnet of this machine.",
    )(command)


def key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--key, for every verb that sends transactions."""
    return click.option(
        "--key",
        "key_path",
        envvar="FLOCKLLM_KEY",
        required=True,
        type=click.Path(dir_okay=False, path_type=Path),
        help="Your key file (JSON keystore). Its password comes from FLOCKLLM_PASSWORD_FILE, "
        "FLOCKLLM_PASSWORD or a prompt.",
    )(command)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-v and --log-json, for verbs that run for a while."""
    command = click.option(
        "-v", "--verbose", is_flag=True, help="Also say what is done under the hood."
    )(command)
    return click.option("--log-json", is_flag=True, help="One JSON object per line, for programs.")(
        command
    )
