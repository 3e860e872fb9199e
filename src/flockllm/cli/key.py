"""`flockllm key`: key files."""

from pathlib import Path

import click


@click.group()
def key() -> None:
    """Make a key file, or show its address."""


@key.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
def new(path: Path) -> None:
    """Make a new key, encrypted with a password, in the file PATH.

    Whoever has file and password has your stake; whoever loses either has lost it.
    """
    from flockllm.chain.keys import create_key, find_password

    password = find_password("Password for the new key file: ", confirm=True)
    click.echo(create_key(path, password).address)


@key.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
def address(path: Path) -> None:
    """Show the address of a key file."""
    from flockllm.chain.keys import key_address

    click.echo(key_address(path))
