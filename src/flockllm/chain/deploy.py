"""Puts the contracts on a chain, and makes tasks; both can be tried first at no cost."""

from dataclasses import asdict, dataclass
from typing import Any

from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from flockllm.chain.abi import interface
from flockllm.chain.rpc import Connection, RpcError
from flockllm.chain.sender import FEE_REQUESTS, Sender, contract_call, refusal, suggested_fees
from flockllm.chain.token import Token
from flockllm.errors import ChainError
from flockllm.rounds import Terms


@dataclass(frozen=True)
class Cost:
    """What a deployment would need."""

    gas: dict[str, int]
    """By step."""
    price: int
    """Wei per gas as things are now: the base fee and the tip."""
    balance: int
    """Of the account that would pay, in wei."""

    @property
    def wei(self) -> int:
        """All steps at this price."""
        return sum(self.gas.values()) * self.price


def deploy_factory(sender: Sender) -> str:
    """Puts the task's code and its factory on the chain; returns the factory's address."""
    blueprint = _create(sender, "Task")
    return _create(sender, "TaskFactory", blueprint)


def deploy_token(sender: Sender, name: str = "FLockLLM test", symbol: str = "FLO") -> Token:
    """A token that the sender can mint, worth nothing."""
    address = _create(sender, "TestToken", name, symbol)
    return Token(sender.connection, address, sender)


def create_task(
    sender: Sender,
    factory: str,
    terms: Terms,
    token: str,
    spec_digest: bytes,
    adapter: bytes,
    pool: int,
) -> str:
    """Makes a task and moves its pool there; returns its address.

    Args:
        sender: the creator.
        factory: the factory's address.
        terms: of the task.
        token: address of an ERC-20 without transfer fee.
        spec_digest: of the task definition, 32 bytes.
        adapter: digest of the initial global adapter, 32 bytes.
        pool: in the token's smallest unit.
    """
    Token(sender.connection, token, sender).approve_enough(factory, pool)
    maker = interface("TaskFactory")
    data = maker.encode("create_task", asdict(terms), token, spec_digest, adapter, pool)
    receipt = sender.send(f"{factory} create_task 0x{spec_digest.hex()}", factory, data)
    for log in receipt.logs:
        event = maker.event(log)
        if event and event.name == "TaskCreated":
            return str(event.args["task"])
    raise ChainError(f"{factory} made no task: is it a task factory?")


def tasks(connection: Connection, factory: str) -> list[str]:
    """All tasks of a factory, oldest first."""
    maker = interface("TaskFactory")
    count = contract_call(connection, maker, factory, "task_count", ())
    return [contract_call(connection, maker, factory, "tasks", (i,)) for i in range(count)]


def estimate(connection: Connection, who: str, *, test_token: bool = False) -> Cost:
    """What `deploy_factory`, a first task, and perhaps a test token would cost; sends nothing.

    The node tries each step on what the steps before it would leave (state overrides of
    `eth_estimateGas`).
    """
    block, tip, balance = connection.batch([*FEE_REQUESTS, ("eth_getBalance", [who, "latest"])])
    maker, there = interface("TaskFactory"), _Overrides(connection, who)
    gas = {}
    gas["task code"], blueprint = there.create(interface("Task").creation())
    gas["factory"], factory = there.create(maker.creation(blueprint))
    if test_token:
        gas["test token"] = there.estimate(interface("TestToken").creation("Test", "TEST"))
    # Any contract will do for the token of a task that nobody funds.
    first = maker.encode("create_task", asdict(Terms()), blueprint, b"\1" * 32, b"\1" * 32, 0)
    gas["a task"] = there.estimate(first, factory)
    fees = suggested_fees(block, tip)
    price = int(block["baseFeePerGas"], 16) + fees.tip
    return Cost(gas, price, int(balance, 16))


def _create(sender: Sender, name: str, *args: Any) -> str:
    data = interface(name).creation(*args)
    receipt = sender.send(f"create {name} {' '.join(args)}", None, data)
    if receipt.contract is None:
        raise ChainError(f"the chain gives no address for the new {name}")
    return to_checksum_address(receipt.contract)


class _Overrides:
    """A chain as it would be with some contracts that are not there yet."""

    def __init__(self, connection: Connection, who: str) -> None:
        self._connection = connection
        self._who = who
        self._code: dict[str, dict[str, str]] = {}

    def create(self, data: bytes) -> tuple[int, str]:
        """Has the contract from now on; returns the gas to create it, and where it is."""
        gas = self.estimate(data)
        address = to_checksum_address(keccak(data)[12:])  # any address that nobody has
        self._code[address] = {"code": self._ask("eth_call", data, None)}
        return gas, address

    def estimate(self, data: bytes, to: str | None = None) -> int:
        """The gas of a call or a creation."""
        return int(self._ask("eth_estimateGas", data, to), 16)

    def _ask(self, method: str, data: bytes, to: str | None) -> str:
        call = {"from": self._who, "data": "0x" + data.hex()} | ({"to": to} if to else {})
        try:
            return str(self._connection.call(method, call, "latest", self._code))
        except RpcError as e:
            raise refusal(e) from e
