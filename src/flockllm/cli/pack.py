"""`flockllm task pack`: what participants need, under one CID."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flockllm.cli.options import network_option
from flockllm.logs import set_up_logging

if TYPE_CHECKING:
    from flockllm.store import Store


@click.command()
@click.argument("what", metavar="TASK.TOML|FOLDER", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--base",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For a FOLDER: an OCI archive or root file system (tar) to build upon. "
    "Without one the code runs on the participants' own Python.",
)
@click.option("--command", help="For a FOLDER: what the image runs; default: python3 main.py.")
@click.option("--image", type=click.Path(path_type=Path), help="Also keep the image archive here.")
@click.option("--store", "location", help="Where to put it: a folder, ipfs:// or s3://.")
@network_option
def pack(
    what: Path,
    base: Path | None,
    command: str | None,
    image: Path | None,
    location: str | None,
    network: str,
) -> None:
    """Put a task definition, or own model code, into the store; print its CID last.

    TASK.TOML is a declarative task: no stranger's code runs anywhere. A FOLDER holds a FlockModel
    whose main.py serves it with FlockSDK; it becomes an OCI image, the same bytes each time.
    """
    set_up_logging()
    if not what.is_dir() and (base or command or image):
        raise click.UsageError("--base, --command and --image are for a folder of model code")
    store, place = _open(location, network)
    size, digest = (
        _pack_model(what, store, base, command, image)
        if what.is_dir()
        else _pack_definition(what, store)
    )
    from flockllm.store import cid_of

    click.echo(f"{size} bytes, in {place}")
    click.echo(f"Model definition IPFS hash: {cid_of(digest, size)}")


def _open(location: str | None, network: str) -> tuple[Store, str]:
    """The store that is named, the network's, or, where there is no network yet, one at home."""
    from flockllm.config import find_network, network_path
    from flockllm.store import open_store

    if location is None:
        known = network or network_path().exists()
        location = find_network(network).store if known else "~/.local/share/flockllm/store"
    return open_store(location), location


def _pack_definition(path: Path, store: Store) -> tuple[int, bytes]:
    from flockllm.task import TaskFile
    from flockllm.wiring import complete

    file = TaskFile.read(path)
    definition = complete(file.definition)
    click.echo(f"task {definition.name!r} on {definition.model.base}, a declarative definition")
    if file.definition.seed != definition.seed:
        click.echo(f"with a new seed; for the same CID again: seed = {definition.seed!r} in {path}")
    data = definition.to_bytes()
    return len(data), _kept(store, data)


def _pack_model(
    folder: Path, store: Store, base: Path | None, command: str | None, image: Path | None
) -> tuple[int, bytes]:
    import mmap

    from flockllm.sandbox import pack as pack_image
    from flockllm.sandbox.image import COMMAND

    with tempfile.TemporaryDirectory() as scratch:
        archive = image or Path(scratch, "image.tar")
        words = shlex.split(command) if command else COMMAND
        for path in pack_image(folder, archive, base, words):
            click.echo(f"  {path.relative_to(folder)}")
        with archive.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
            view = memoryview(m)
            digest = _kept(store, view)
            view.release()
        return archive.stat().st_size, digest


def _kept(store: Store, data: bytes | memoryview) -> bytes:
    digest = store.put(data)
    store.pin(digest, len(data))
    return digest
