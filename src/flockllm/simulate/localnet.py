"""A network on this machine: chain, contracts, token, store, and keys with money."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flockllm.chain.deploy import deploy_factory, deploy_token
from flockllm.chain.devnet import Devnet
from flockllm.chain.keys import SCRYPT_N_LIGHT, Key, create_key, load_key
from flockllm.chain.rpc import Connection, connect
from flockllm.chain.sender import Sender
from flockllm.config import Network
from flockllm.task import DECIMALS

WEALTH = 10_000 * DECIMALS
"""What each key of a local network has in tokens."""


@dataclass(frozen=True)
class Localnet:
    """A running local network. Everything is in `folder`; what is there is gone on with."""

    folder: Path
    network: Network
    devnet: Devnet
    connection: Connection

    @property
    def network_file(self) -> Path:
        """The file that `--network` takes."""
        return self.folder / "network.toml"

    def key_path(self, name: str) -> Path:
        """The key file of an actor."""
        return self.folder / "keys" / f"{name}.json"

    def key(self, name: str) -> Key:
        """The key of an actor."""
        return load_key(self.key_path(name), Path(self.network.password_file).read_text())


@contextmanager
def localnet(folder: Path, names: list[str], *, port: int = 0) -> Iterator[Localnet]:
    """Starts a chain whose state is kept in `folder`, and on first use deploys everything.

    Args:
        folder: for chain state, store, keys and the network file.
        names: of actors that get a key, ether and tokens; the first one owns the token.
        port: of the chain; 0 takes a free one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    password = folder / "password.txt"
    if not password.exists():
        password.write_text(secrets.token_hex(16))
        password.chmod(0o600)
    with (
        Devnet.start(folder / "chain", port) as devnet,
        connect(devnet.rpc_url, devnet.chain_id) as connection,
    ):
        path = folder / "network.toml"
        known = Network.read(path) if path.exists() else None
        keys = [_key(folder / "keys" / f"{name}.json", password.read_text()) for name in names]
        for key in keys:
            devnet.give_ether(key.address, 1_000 * 10**18)
        factory, token = (known.factory, known.token) if known else ("", "")
        if not known:
            sender = Sender(connection, keys[0], folder / "transactions")
            token_contract = deploy_token(sender)
            factory, token = deploy_factory(sender), token_contract.address
            for key in keys:
                token_contract.mint(key.address, WEALTH)
        network = Network(
            rpc=devnet.rpc_url,
            chain_id=devnet.chain_id,
            factory=factory,
            token=token,
            store=str(folder / "store"),
            password_file=str(password),
        )
        network.write(path)
        yield Localnet(folder, network, devnet, connection)


def _key(path: Path, password: str) -> Key:
    if path.exists():
        return load_key(path, password)
    return create_key(path, password, scrypt_n=SCRYPT_N_LIGHT)
