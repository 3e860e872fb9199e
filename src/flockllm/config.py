"""Which chain, store and keys this machine uses: a network file, found by name or path.

A network file is TOML that `flockllm devnet` and `flockllm deploy` write and people may edit:

    rpc = "http://127.0.0.1:8545"
    chain_id = 31337
    factory = "0x…"
    token = "0x…"
    store = "/home/ada/flock/store"        # or ipfs://host:5001, s3://bucket/prefix
    gateways = ["https://ipfs.io"]         # read-only, tried in turn
    password_file = "password.txt"         # only for keys worth nothing

Relative paths are relative to the file.
"""

import json
import os
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from flockllm.errors import InvalidConfig

DEFAULT_NETWORK = "devnet"
"""The network that is used where none is named."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Everything that participants of the same tasks share, and nothing secret."""

    rpc: str
    """JSON-RPC endpoint, `http(s)://` or `ws(s)://`."""
    store: str
    """Where content is: a folder, `ipfs://host:port` or `s3://bucket/prefix`."""
    chain_id: int = 0
    """What the endpoint must be; 0 for whatever it is."""
    factory: str = ""
    """The contract that makes tasks; only task creators need it."""
    token: str = ""
    """The ERC-20 that new tasks stake and pay in."""
    gateways: tuple[str, ...] = ()
    """Read-only IPFS gateways, tried in turn after the store."""
    password_file: str = ""
    """For test networks; elsewhere FLOCKLLM_PASSWORD_FILE or the prompt."""
    confirmations: int = 1
    """Blocks after which a transaction counts; more where the chain reorganises."""
    max_fee_gwei: int = 0
    """The most to pay per gas; 0 for no limit."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a network file.

        Raises:
            InvalidConfig: it cannot be read, or a key is unknown or of the wrong type.
        """
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, ValueError) as e:
            raise InvalidConfig(f"network file {path}: {e}") from e
        known = {f.name: f.type for f in fields(cls)}
        for key, value in raw.items():
            if key not in known:
                raise InvalidConfig(f"{path}: unknown key {key}; known are {', '.join(known)}")
            if key == "gateways":
                raw[key] = tuple(value)
            elif not isinstance(value, int if known[key] is int else str):
                raise InvalidConfig(f"{path}: {key} must be {known[key]}, got {value!r}")
        for key in ("rpc", "store"):
            if key not in raw:
                raise InvalidConfig(f"{path}: {key} is missing")
        for key in ("store", "password_file"):
            if raw.get(key) and "://" not in raw[key]:
                raw[key] = str(path.parent / Path(raw[key]).expanduser())
        return cls(**raw)

    def write(self, path: Path) -> None:
        """Writes the network file, whole or not at all."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in asdict(self).items() if value]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        part.replace(path)


def network_path(name: str = "") -> Path:
    """Where the network of a name is kept; something with a slash or suffix is a path itself."""
    name = name or DEFAULT_NETWORK
    if "/" in name or name.endswith(".toml"):
        return Path(name).expanduser()
    return _base("XDG_CONFIG_HOME", ".config") / "networks" / f"{name}.toml"


def find_network(name: str = "") -> Network:
    """Reads the network of a name or path.

    Raises:
        InvalidConfig: there is none, and what to do about it.
    """
    path = network_path(name)
    if not path.exists():
        raise InvalidConfig(
            f"there is no network file {path}: run `flockllm devnet` for one on this machine, "
            "or pass the file of the task's network with --network FILE"
        )
    return Network.read(path)


def state_folder(chain_id: int, task: str, address: str) -> Path:
    """Where a participant keeps its copies and the record of its run."""
    name = f"{chain_id}-{task[2:10].lower()}"
    return _base("XDG_STATE_HOME", ".local/state") / name / address[2:10].lower()


def sent_folder() -> Path:
    """Where the journals of sent transactions are, one for each key and chain."""
    return _base("XDG_STATE_HOME", ".local/state") / "transactions"


def _base(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "flockllm"
