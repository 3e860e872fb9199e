"""Options that several verbs share, each defined once."""

import json
import logging
import sys
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


def set_up_logging(*, verbose: bool = False, log_json: bool = False) -> None:
    """Sends our log to the terminal as people read it, or as JSON lines."""
    if log_json:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLines())
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("flockllm")
    package.handlers = [handler]
    package.setLevel(logging.DEBUG if verbose else logging.INFO)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
