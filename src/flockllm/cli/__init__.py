"""The command `flockllm`: verbs that read arguments, wire the parts and make one call.

Verbs load when they are called, so that `--help` is instant.
"""

import importlib
import logging
import sys

import click

from flockllm import __version__
from flockllm.errors import FlockError

VERBS = {
    "demo": (
        "flockllm.cli.demo:demo",
        "Four participants, four rounds, one better model, on this machine.",
    ),
    "devnet": (
        "flockllm.cli.devnet:devnet",
        "A chain and a store for several processes on this machine.",
    ),
    "key": ("flockllm.cli.key:key", "Make a key file, or show its address."),
    "data": ("flockllm.cli.data:data", "Check a data file, or deal one out to several clients."),
    "task": ("flockllm.cli.task:task", "Create a task: what is trained, how, and for how much."),
    "join": (
        "flockllm.cli.join:join",
        "Take part in a task until it is done: stake, train, vote, claim.",
    ),
    "watch": ("flockllm.cli.watch:watch", "Follow a task in the terminal."),
    "adapter": (
        "flockllm.cli.adapter:adapter",
        "Get the global adapter of a task, verified, in PEFT's format.",
    ),
    "audit": (
        "flockllm.cli.audit:audit",
        "Compute a task again from chain and store, and see whether it was as the chain says.",
    ),
    "host": (
        "flockllm.cli.host:host",
        "Serve base model and adapter: a page to compare them, and an OpenAI-compatible API.",
    ),
    "claim": ("flockllm.cli.money:claim", "Take out what a task has paid you."),
    "exit": ("flockllm.cli.money:exit_", "Leave a task and take out your stake."),
    "withdraw": (
        "flockllm.cli.money:withdraw",
        "Take out what is left of the pool of your finished task.",
    ),
    "store": (
        "flockllm.cli.store:store",
        "Keep content in the store, or make room in it.",
    ),
    "deploy": ("flockllm.cli.deploy:deploy", "Put the contracts on a chain, for others to use."),
}
"""Where each verb lives and what it does, in the order in which one needs them."""


class Verbs(click.Group):
    """Loads a verb when it is called, and shows our own errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order in which one needs them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Imports the module of one verb."""
        if name not in VERBS:
            return None
        module, attribute = VERBS[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs with a line each, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Runs a verb; a `FlockError` is a message and exit code 1, Ctrl-C is 130."""
        try:
            return super().invoke(ctx)
        except FlockError as e:
            logging.getLogger(__name__).debug("failed", exc_info=True)
            raise click.ClickException(str(e)) from e
        except KeyboardInterrupt:
            click.echo("Stopped. Run the same command again to go on.", err=True)
            sys.exit(130)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Fine-tune one language model together with people you need not trust.

    Your data stays with you. Each round some participants train a small update, others score it
    on data of their own, and a contract pays what helped and slashes what harmed.

    \b
    See it run:        flockllm demo
    On one machine:    flockllm devnet, then in other shells task create, join, watch
    Take part:         flockllm join TASK --data my.jsonl --key my.json --network FILE

    Every option can also be set in the environment: --network as FLOCKLLM_NETWORK, and so on.
    """
