"""`flockllm devnet`: a chain and a store for several processes on this machine."""

import signal
import threading
from pathlib import Path

import click

from flockllm.logs import set_up_logging


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("devnet"),
    show_default=True,
    help="Where chain state, store and keys are kept; what is there is gone on with.",
)
@click.option("--port", default=8545, show_default=True, help="Of the chain, on 127.0.0.1; 0: any.")
@click.option(
    "--participants",
    type=click.IntRange(1, 200),
    default=4,
    show_default=True,
    help="How many keys to make, next to the creator's.",
)
def devnet(folder: Path, port: int, participants: int) -> None:
    """Run a chain and a store for several processes on this machine, until Ctrl-C.

    Makes keys with test money (creator, participant-1, participant-2 …), deploys the contracts,
    and becomes the default network of this machine. Its money is worth nothing.
    """
    set_up_logging()
    from flockllm.config import DEFAULT_NETWORK, network_path
    from flockllm.simulate.localnet import localnet

    names = ["creator", *(f"participant-{i + 1}" for i in range(participants))]
    with localnet(folder, names, port=port) as net:
        net.network.write(network_path(DEFAULT_NETWORK))
        click.echo(
            f"chain     {net.network.rpc} (id {net.network.chain_id})\n"
            f"store     {net.network.store}\n"
            f"keys      {net.key_path('creator')}\n"
            f"          {net.key_path('participant-1')} … participant-{participants}\n"
            f"network   {net.network_file}, the default one of this machine\n\n"
            f"Next, in another shell:\n"
            f"  flockllm task create examples/task.toml --key {net.key_path('creator')}\n\n"
            f"Ctrl-C ends the chain; its state stays in {folder}."
        )
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        while not stop.wait(1):
            net.connection.head()  # a chain that died ends this, with an error that says so
