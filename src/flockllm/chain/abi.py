"""Calls, results, events and reverts of a contract as Python values, by its ABI.

Structs are dictionaries by field name, addresses are checksummed, bytes are `bytes`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from flockllm.errors import ChainError

Entry = Mapping[str, Any]
"""A function, event or constructor in an ABI's JSON."""

ERROR = bytes.fromhex("08c379a0")
"""Selector of `Error(string)`, what a revert with a reason returns."""

PANIC = bytes.fromhex("4e487b71")
"""Selector of `Panic(uint256)`."""


@dataclass(frozen=True)
class Event:
    """Something that a contract said happened."""

    name: str
    args: Mapping[str, Any]
    block: int
    index: int
    """Place of the log in its block."""
    transaction: bytes


@dataclass(frozen=True)
class Interface:
    """A contract's functions and events, and its code."""

    name: str
    bytecode: bytes
    """What a creation transaction carries; for a blueprint, what deploys the blueprint."""
    constructor: Sequence[Entry]
    """Inputs of the constructor."""
    functions: Mapping[tuple[str, int], Entry]
    """By name and number of arguments."""
    events: Mapping[bytes, Entry]
    """By first topic."""

    def encode(self, function: str, *args: Any) -> bytes:
        """A call's data: selector and arguments."""
        entry = self.functions[function, len(args)]
        return _selector(entry)[:4] + _encode(entry["inputs"], args)

    def decode(self, function: str, arity: int, data: bytes) -> Any:
        """What a call returned: one value, or a tuple of several."""
        outputs = self.functions[function, arity]["outputs"]
        try:
            values = _decode(outputs, data)
        except DecodingError as e:
            raise ChainError(
                f"{function}: the answer is not what {self.name} gives: is the address right?"
            ) from e
        return values[0] if len(outputs) == 1 else values

    def creation(self, *args: Any) -> bytes:
        """A creation transaction's data."""
        return self.bytecode + _encode(self.constructor, args)

    def event(self, log: Mapping[str, Any]) -> Event | None:
        """A log entry as `eth_getLogs` gives it, decoded; None if the ABI does not know it."""
        topics = [bytes.fromhex(topic[2:]) for topic in log["topics"]]
        entry = self.events.get(topics[0]) if topics else None
        if entry is None:
            return None
        indexed = [field for field in entry["inputs"] if field["indexed"]]
        plain = [field for field in entry["inputs"] if not field["indexed"]]
        values = _decode(indexed, b"".join(topics[1:]))
        values += _decode(plain, bytes.fromhex(log["data"][2:]))
        return Event(
            entry["name"],
            dict(zip((f["name"] for f in [*indexed, *plain]), values, strict=True)),
            int(log["blockNumber"], 16),
            int(log["logIndex"], 16),
            bytes.fromhex(log["transactionHash"][2:]),
        )


@cache
def interface(name: str) -> Interface:
    """One of the contracts that this package brings: Task, TaskFactory, TestToken."""
    file = resources.files("flockllm.chain") / "artifacts" / f"{name}.json"
    artifact = json.loads(file.read_text())
    entries = artifact["abi"]
    blueprint = "blueprint" in artifact  # its constructor runs later, in the factory
    constructors = [e["inputs"] for e in entries if e["type"] == "constructor" and not blueprint]
    return Interface(
        name,
        bytes.fromhex(artifact["blueprint" if blueprint else "bytecode"].removeprefix("0x")),
        constructors[0] if constructors else (),
        {(e["name"], len(e["inputs"])): e for e in entries if e["type"] == "function"},
        {_selector(e): e for e in entries if e["type"] == "event"},
    )


def revert_reason(data: object) -> str:
    """The reason in what a reverted call returned (hex), or "no reason given"."""
    raw = bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") else b""
    try:
        match raw[:4]:
            case bytes(head) if head == ERROR:
                return str(decode(["string"], raw[4:])[0])
            case bytes(head) if head == PANIC:
                return f"panic {decode(['uint256'], raw[4:])[0]}"
    except DecodingError:
        pass
    return "no reason given"


def _type(field: Entry) -> str:
    """The canonical type: a struct is the tuple of its fields' types."""
    kind: str = field["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(map(_type, field['components']))}){kind.removeprefix('tuple')}"


def _selector(entry: Entry) -> bytes:
    return keccak(f"{entry['name']}({','.join(map(_type, entry['inputs']))})".encode())


def _encode(fields: Sequence[Entry], values: Sequence[Any]) -> bytes:
    flat = [_flatten(field, value) for field, value in zip(fields, values, strict=True)]
    return encode([_type(field) for field in fields], flat)


def _flatten(field: Entry, value: Any) -> Any:
    if field["type"] == "tuple" and isinstance(value, Mapping):
        return tuple(_flatten(part, value[part["name"]]) for part in field["components"])
    return value


def _decode(fields: Sequence[Entry], data: bytes) -> tuple[Any, ...]:
    values = decode([_type(field) for field in fields], data)
    return tuple(_named(field, value) for field, value in zip(fields, values, strict=True))


def _named(field: Entry, value: Any) -> Any:
    kind: str = field["type"]
    if kind.endswith("]"):
        return tuple(_named({**field, "type": kind[: kind.rindex("[")]}, v) for v in value)
    if kind == "tuple":
        parts = zip(field["components"], value, strict=True)
        return {part["name"]: _named(part, v) for part, v in parts}
    return to_checksum_address(value) if kind == "address" else value
