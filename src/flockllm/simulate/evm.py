"""The compiled contracts on revm, in this process: no node, no blocks, 10 000 calls per second.

For simulations and for tests that compare every step with a model. Block n's hash is keccak256 of
n as decimal text; time and height are attributes. Needs the package `pyrevm`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import astuple
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from eth_abi.abi import decode, encode
from eth_hash.auto import keccak
from eth_utils import address as eth_address
from pyrevm import EVM, BlockEnv

from flockllm import rounds
from flockllm.rounds import Duty, Outcome, Phase, Terms, Verdict

ARTIFACTS = Path(__file__).resolve().parents[1] / "chain/artifacts"
WORDS = {"uint256", "bytes32", "address"}
Values = tuple[Any, ...]
CHAIN_ID = 1
SPEC = keccak(b"spec")
INITIAL = keccak(b"initial adapter")
PLENTY = 2**127
"""Tokens that everybody has: nobody's call fails for want of money."""


@lru_cache(maxsize=1 << 12)
def to_checksum_address(address: str) -> str:
    """The address as the rest of the package writes it."""
    return str(eth_address.to_checksum_address(address))


@cache
def artifact(name: str) -> dict[str, Any]:
    """A compiled contract."""
    return dict[str, Any](json.loads((ARTIFACTS / f"{name}.json").read_text()))


def types(parameters: Sequence[dict[str, Any]]) -> list[str]:
    """ABI types, with structs written out as tuples."""
    return [
        p["type"].replace("tuple", f"({','.join(types(p['components']))})")
        if "components" in p
        else p["type"]
        for p in parameters
    ]


@cache
def functions(contract: str) -> dict[str, tuple[bytes, list[str], list[str]]]:
    """By name: selector, types of the arguments, types of the results."""
    found = {}
    for entry in artifact(contract)["abi"]:
        if entry["type"] == "function":
            takes, gives = types(entry["inputs"]), types(entry["outputs"])
            selector = keccak(f"{entry['name']}({','.join(takes)})".encode())[:4]
            found[entry["name"]] = selector, takes, gives
    return found


@cache
def events(contract: str) -> dict[bytes, tuple[str, list[str], list[str]]]:
    """By topic: name, types of the indexed values, types of the rest. Indexed ones come first."""
    found = {}
    for entry in artifact(contract)["abi"]:
        if entry["type"] == "event":
            all_ = types(entry["inputs"])
            indexed = [t for t, p in zip(all_, entry["inputs"], strict=True) if p["indexed"]]
            topic = keccak(f"{entry['name']}({','.join(all_)})".encode())
            found[topic] = entry["name"], indexed, all_[len(indexed) :]
    return found


def encoded(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """As `eth_abi.encode`, but ten times faster for values of one word."""
    if not WORDS.issuperset(types):
        return encode(types, values)
    words = [int(v, 16) if t == "address" else v for t, v in zip(types, values, strict=True)]
    return b"".join(v if isinstance(v, bytes) else v.to_bytes(32) for v in words)


def decoded(types: Sequence[str], data: bytes) -> Values:
    """The inverse of `encoded`."""
    if not WORDS.issuperset(types):
        return decode(types, data)
    return tuple(_word(t, data[32 * i : 32 * i + 32]) for i, t in enumerate(types))


def _word(kind: str, word: bytes) -> int | bytes | str:
    match kind:
        case "uint256":
            return int.from_bytes(word)
        case "address":
            return "0x" + word[12:].hex()
    return word


def address(number: int) -> str:
    """A participant's address."""
    return to_checksum_address(keccak(b"participant %d" % number)[-20:])


class Refused(Exception):
    """A call that reverted, with the contract's reason."""


class Chain:
    """One EVM with a factory, a token, and one task made by `creator`."""

    def __init__(
        self, terms: Terms, creator: str, pool: int, *, blueprint: bytes | None = None
    ) -> None:
        self.evm = EVM()
        self.now, self.block, self.gas = 1_700_000_000, 1_000, 0
        self.terms, self.creator = terms, creator
        self._tick()
        template = self._deploy(blueprint or bytes.fromhex(artifact("Task")["blueprint"][2:]))
        self.factory = self._deploy(self._code("TaskFactory") + encode(["address"], [template]))
        self.token = self._deploy(self._code("TestToken") + encode(["string"] * 2, ["T", "TST"]))
        self.endow(creator, self.factory)
        (task,) = self.send(
            "TaskFactory",
            self.factory,
            creator,
            "create_task",
            (astuple(terms), self.token, SPEC, INITIAL, pool),
        )
        self.task = to_checksum_address(task)

    def _code(self, name: str) -> bytes:
        return bytes.fromhex(artifact(name)["bytecode"][2:])

    def _deploy(self, code: bytes) -> str:
        return self.evm.deploy(self.creator, code)

    def _tick(self) -> None:
        self.evm.set_block_env(BlockEnv(number=self.block, timestamp=self.now))

    def wait(self, seconds: int = 0, blocks: int = 0) -> None:
        """Lets time pass and blocks be mined."""
        self.now += seconds
        self.block += blocks
        self._tick()

    def block_hash(self, number: int) -> bytes:
        """The hash of a past block."""
        return keccak(str(number).encode())

    def endow(self, who: str, spender: str | None = None) -> None:
        """Gives `who` plenty of tokens, and lets `spender` (the task) take them."""
        self.send("TestToken", self.token, self.creator, "mint", (who, PLENTY))
        self.send("TestToken", self.token, who, "approve", (spender or self.task, PLENTY))

    def send(self, contract: str, to: str, who: str, name: str, args: Sequence[Any] = ()) -> Values:
        """Calls a function from `who` and returns its results.

        Raises:
            Refused: it reverted.
        """
        selector, takes, gives = functions(contract)[name]
        out = self._message(who, to, selector + encoded(takes, args))
        return decode(gives, out) if gives else ()

    def _message(self, who: str, to: str, data: bytes) -> bytes:
        try:
            return self.evm.message_call(who, to, data)
        except RuntimeError as e:
            output = re.search(r"output: 0x([0-9a-f]*)", str(e))
            data = bytes.fromhex(output[1]) if output else b""
            reason = decode(["string"], data[4:])[0] if len(data) > 4 else str(e)
            raise Refused(reason) from None
        finally:
            self.evm.reset_transient_storage()

    def raw(self, name: str, *args: object) -> bytes:
        """The task's answer as bytes."""
        selector, takes, _ = functions("Task")[name]
        return self._message(self.creator, self.task, selector + encoded(takes, args))

    def call(self, who: str, name: str, *args: object) -> Values:
        """Calls the task."""
        return self.send("Task", self.task, who, name, args)

    def events(self) -> list[tuple[str, Values]]:
        """What the last call told: name and values of each of the task's events."""
        told = []
        for log in self.evm.result.logs if self.evm.result else []:
            if to_checksum_address(log.address) == self.task:
                topics, data = log.data
                name, indexed, rest = events("Task")[topics[0]]
                told.append((name, decoded(indexed, b"".join(topics[1:])) + decoded(rest, data)))
        return told

    # the task, as the model's values

    def view(self, who: str) -> rounds.View:
        """What a node sees."""
        return to_view(self.call(who, "look", who), self.terms)

    def seats(self, number: int) -> tuple[rounds.Seat, ...]:
        """The seats of a round."""
        (seats,) = self.call(self.creator, "seats", number)
        return tuple(to_seat(seat, self.terms) for seat in seats)

    def result(self, number: int) -> rounds.RoundResult:
        """How a round ended."""
        outcome, *rest = self.call(self.creator, "round_result", number)
        return rounds.RoundResult(Outcome(outcome), *rest)

    def balance(self) -> int:
        """The tokens that the task holds."""
        selector, takes, _ = functions("TestToken")["balanceOf"]
        data = selector + encoded(takes, [self.task])
        return int.from_bytes(self._message(self.creator, self.token, data))


def to_view(looked: Values, terms: rounds.Terms) -> rounds.View:
    """What `look` answers, as the model's values."""
    state, seats, mine = looked
    return rounds.View(
        state=rounds.State(state[0], Phase(state[1]), *state[2:]),
        seats=tuple(to_seat(seat, terms) for seat in seats),
        me=rounds.Participant(*mine),
    )


def to_seat(seat: Values, terms: rounds.Terms) -> rounds.Seat:
    """A seat as the contract tells it, as the model's."""
    who, voter, duty, commitment, digest, size, scores, verdict, weight, settled = seat
    revealed = voter and duty == Duty.DONE
    return rounds.Seat(
        who=to_checksum_address(who),
        voter=voter,
        duty=Duty(duty),
        commitment=commitment,
        digest=digest,
        size=size,
        scores=rounds.unpack_scores(scores, terms.proposers) if revealed else (),
        verdict=Verdict(verdict),
        weight=weight,
        settled=settled,
    )
