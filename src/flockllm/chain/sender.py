"""Sends the transactions of one key, each intent once, through crashes and reorganisations.

What is sent was written to the journal before. From there on the journal is brought in line
with the chain by one function, `_tend`, whatever happened in between: it finds what was mined,
sends again what the chain lost, and replaces what is stuck by the same transaction with higher
fees. A nonce is used once, so sending again never does a thing twice.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flockllm.chain.abi import Interface, revert_reason
from flockllm.chain.journal import Attempt, Entry, Journal
from flockllm.chain.keys import Key
from flockllm.chain.rpc import Connection, RpcError
from flockllm.errors import ChainError, Reverted

log = logging.getLogger(__name__)

GAS_CAP = 16_777_216
"""The most gas that one transaction may have (EIP-7825)."""

HEADROOM = 300_000
"""Gas beside the estimate: others may act first, and then it is this call that ends the phase."""

KEEP = 128
"""Blocks for which a mined transaction stays in the journal, to be sent again if lost."""

SURE = 3
"""Blocks after which a nonce that is used without a receipt of ours is believed lost to us."""

DEFAULT_TIP = 10**9
"""Wei per gas where the node suggests none."""


@dataclass(frozen=True)
class Receipt:
    """A transaction that was mined and did what it was meant to do."""

    hash: str
    block: int
    gas_used: int
    fee: int
    """In wei."""
    contract: str | None
    """The address of what it created."""
    logs: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Fees:
    """What a transaction offers, wei per gas (EIP-1559)."""

    max_fee: int
    tip: int

    def raised_over(self, last: Attempt) -> "Fees":
        """At least 12.5 % above `last`: what nodes ask of a replacement."""
        return Fees(
            max(self.max_fee, last.max_fee * 9 // 8 + 1), max(self.tip, last.tip * 9 // 8 + 1)
        )


class Sender:
    """The one who signs for a key. Any number of processes may have one for the same key."""

    def __init__(
        self,
        connection: Connection,
        key: Key,
        folder: Path,
        *,
        confirmations: int = 1,
        max_fee_per_gas: int | None = None,
        gas_cap: int = GAS_CAP,
        patience: float = 30.0,
        timeout: float = 600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the key's journal; sends nothing.

        Args:
            connection: to the chain.
            key: that signs.
            folder: for the journals, kept between runs.
            confirmations: blocks, its own included, before a transaction counts as done.
            max_fee_per_gas: the most to pay, in wei; None for no limit.
            gas_cap: the most gas for one transaction.
            patience: seconds without being mined after which fees are raised.
            timeout: seconds after which `send` gives up waiting (the transaction stays alive).
            clock: Unix time.
        """
        self.connection = connection
        self.address = key.address
        self._key = key
        self._chain_id = connection.chain_id
        # A devnet that began anew has the same chain id, and other blocks.
        genesis = connection.call("eth_getBlockByNumber", "0x0", False)["hash"][2:10]
        self._journal = Journal(folder / f"{self._chain_id}-{genesis}-{key.address[2:]}.json")
        self._confirmations = confirmations
        self._max_fee = max_fee_per_gas
        self._gas_cap = gas_cap
        self._patience = patience
        self._timeout = timeout
        self._clock = clock
        with self._journal.open() as entries:
            self._reached = max((entry.nonce + 1 for entry in entries if entry.done), default=0)

    def send(self, intent: str, to: str | None, data: bytes) -> Receipt:
        """Calls `to` (None: creates a contract), and waits until it is done.

        An intent whose end nobody was told yet, perhaps because of a crash, is not sent again
        but waited for; so is one that a reorganisation took back.

        Raises:
            Reverted: the contract refuses; usually found out beforehand, so nothing was sent.
            ChainError: the node is out of reach, ether is missing, fees are above the limit, or
                the transaction is still pending after `timeout`: ask again with the same intent.
        """
        end = time.monotonic() + self._timeout
        while True:
            nonce = self._post(intent, to, data)
            while (found := self._look(nonce)) is not None:
                entry, receipt = found
                if receipt:
                    return self._checked(receipt, entry)
                if time.monotonic() >= end:
                    raise ChainError(
                        f"{intent}: transaction {entry.attempts[-1].hash} is still pending after "
                        f"{self._timeout:.0f} s; it stays alive, ask again later"
                    )
                self.connection.heads(min(self._patience, end - time.monotonic()))
            log.warning("%s: nonce %d went to another transaction; sending anew", intent, nonce)

    def pending(self) -> list[str]:
        """Intents that were sent and are not mined, by nonce; resends what the chain lost."""
        with self._journal.open() as entries:
            self._tend(entries)
            return [entry.intent for entry in entries if entry.block is None]

    def mend(self) -> None:
        """Sends again what a reorganisation took back; costs one request if there was none."""
        count = self.connection.call("eth_getTransactionCount", self.address, "latest")
        if int(count, 16) < self._reached:
            self.pending()

    def _post(self, intent: str, to: str | None, data: bytes) -> int:
        """Gives the intent a transaction, unless it has one; returns the nonce."""
        with self._journal.open() as entries:
            used = self._tend(entries)
            for entry in entries:
                if entry.intent == intent and not entry.done:
                    log.info("%s: was sent before, not sending it again", intent)
                    return entry.nonce
            transaction, fees = self._prepare(to, data)
            nonce = max([used, *(entry.nonce + 1 for entry in entries)])
            entry = Entry(intent, {**transaction, "nonce": nonce})
            self._sign(entry, fees)
            entries.append(entry)
            self._journal.save(entries)
            try:
                self._broadcast(entry)
            except RpcError as e:  # refused, so nobody has it
                entries.remove(entry)
                self._journal.save(entries)
                raise ChainError(f"{intent}: the node refuses the transaction: {e}") from e
            return nonce

    def _prepare(self, to: str | None, data: bytes) -> tuple[dict[str, Any], Fees]:
        """Tries the call, and finds its gas and fees; nothing is sent."""
        call = {"from": self.address, "data": "0x" + data.hex()} | ({"to": to} if to else {})
        outcome, gas, balance, *suggested = self.connection.batch(
            [
                ("eth_call", [call, "latest"]),
                ("eth_estimateGas", [call]),
                ("eth_getBalance", [self.address, "latest"]),
                *FEE_REQUESTS,
            ]
        )
        for answer in (outcome, gas):
            if isinstance(answer, RpcError):
                raise refusal(answer)
        limit = int(gas, 16) * 5 // 4
        if limit > self._gas_cap:
            raise ChainError(f"the call needs {limit} gas, more than the cap of {self._gas_cap}")
        limit = min(limit + HEADROOM, self._gas_cap)
        fees = suggested_fees(*suggested)
        if self._max_fee is not None:
            if int(suggested[0]["baseFeePerGas"], 16) > self._max_fee:
                raise ChainError(
                    f"the chain asks {fees.max_fee / 1e9:.3g} gwei per gas, above your limit of "
                    f"{self._max_fee / 1e9:.3g}: wait, or raise it"
                )
            fees = Fees(min(fees.max_fee, self._max_fee), min(fees.tip, self._max_fee))
        _check_ether(self.address, int(_value(balance), 16), limit * fees.max_fee)
        transaction = {
            "type": 2,
            "chainId": self._chain_id,
            "gas": limit,
            "value": 0,
            "data": "0x" + data.hex(),
        }
        return transaction | ({"to": to} if to else {}), fees

    def _tend(self, entries: list[Entry]) -> int:
        """Brings the journal in line with the chain; returns the next nonce the chain expects.

        An entry whose nonce went to a transaction that is none of its attempts is removed.
        """
        pending = [entry for entry in entries if entry.block is None]
        hashes = [attempt.hash for entry in pending for attempt in entry.attempts]
        head, count, queued, *answers = self.connection.batch(
            [
                ("eth_blockNumber", []),
                ("eth_getTransactionCount", [self.address, "latest"]),
                ("eth_getTransactionCount", [self.address, "pending"]),
                *(("eth_getTransactionReceipt", [hash_]) for hash_ in hashes),
                *(("eth_getTransactionByHash", [hash_]) for hash_ in hashes),
            ]
        )
        number, used = int(_value(head), 16), int(_value(count), 16)
        receipts = dict(zip(hashes, map(_value, answers[: len(hashes)]), strict=True))
        known = dict(zip(hashes, map(_value, answers[len(hashes) :]), strict=True))
        doubts = [entry.taken for entry in entries]
        for entry in list(entries):
            if entry.block is not None and used <= entry.nonce:
                log.warning("%s: the chain lost it; sending it again", entry.intent)
                entry.block = entry.hash = None
                entry.done = False
                self._resend(entry)
            elif entry.block is not None:
                if number - entry.block > KEEP:
                    entries.remove(entry)
            elif mined := next((r for a in entry.attempts if (r := receipts[a.hash])), None):
                entry.block, entry.hash = int(mined["blockNumber"], 16), mined["transactionHash"]
            elif used > entry.nonce:
                # Another transaction has the nonce; or the count came from a node that is ahead
                # of the one that knows the receipt, so this is believed only some blocks later.
                entry.taken = entry.taken or number
                if number >= entry.taken + SURE:
                    entries.remove(entry)
            elif not any(known[attempt.hash] for attempt in entry.attempts):
                log.warning("%s: the node does not know it; sending it again", entry.intent)
                self._resend(entry)
            elif self._clock() - entry.attempts[-1].at > self._patience:
                self._replace(entry, entries)
        # All else that was found can be found again, and is kept with the next transaction.
        if doubts != [entry.taken for entry in entries]:
            self._journal.save(entries, durable=False)
        return max(used, int(_value(queued), 16))

    def _resend(self, entry: Entry) -> None:
        """Broadcasts the newest attempt again; a refusal is left to the next look."""
        try:
            self._broadcast(entry)
        except RpcError as e:
            log.warning("%s: the node refuses it: %s", entry.intent, e)

    def _replace(self, entry: Entry, entries: list[Entry]) -> None:
        """Offers more for a transaction that nobody mines."""
        answers = [_value(answer) for answer in self.connection.batch(FEE_REQUESTS)]
        fees = suggested_fees(*answers).raised_over(entry.attempts[-1])
        if self._max_fee is not None and fees.max_fee > self._max_fee:
            log.warning("%s: stuck, and raising its fee would exceed your limit", entry.intent)
            return
        log.info("%s: stuck, offering %.3g gwei per gas", entry.intent, fees.max_fee / 1e9)
        self._sign(entry, fees)
        self._journal.save(entries)
        self._resend(entry)

    def _sign(self, entry: Entry, fees: Fees) -> None:
        from eth_account import Account

        signed = Account.sign_transaction(
            entry.transaction | {"maxFeePerGas": fees.max_fee, "maxPriorityFeePerGas": fees.tip},
            self._key.private,
        )
        raw, hash_ = "0x" + signed.raw_transaction.hex(), "0x" + signed.hash.hex()
        entry.attempts.append(Attempt(hash_, raw, fees.max_fee, fees.tip, self._clock()))

    def _broadcast(self, entry: Entry) -> None:
        try:
            self.connection.call("eth_sendRawTransaction", entry.attempts[-1].raw)
        except RpcError as e:
            # It is there already, or the nonce is used: both are found out by looking.
            if not any(word in str(e).lower() for word in ("already", "known", "nonce too low")):
                raise

    def _look(self, nonce: int) -> tuple[Entry, Any] | None:
        """The entry of a nonce, and its receipt once that counts; None if the nonce is lost."""
        with self._journal.open() as entries:
            self._tend(entries)
            entry = next((entry for entry in entries if entry.nonce == nonce), None)
            if entry is None:
                return None
            receipt = self._settled(entry.hash) if entry.hash else None
            if receipt:
                entry.done = True
                self._reached = max(self._reached, nonce + 1)
                self._journal.save(entries, durable=False)
            return entry, receipt

    def _settled(self, hash_: str) -> Any:
        """The receipt, once it is deep enough in the chain."""
        receipt, head = self.connection.batch(
            [("eth_getTransactionReceipt", [hash_]), ("eth_blockNumber", [])]
        )
        if not _value(receipt):
            return None
        depth = int(_value(head), 16) - int(receipt["blockNumber"], 16) + 1
        return receipt if depth >= self._confirmations else None

    def _checked(self, receipt: Any, entry: Entry) -> Receipt:
        block, gas = int(receipt["blockNumber"], 16), int(receipt["gasUsed"], 16)
        if int(receipt["status"], 16) == 0:
            raise Reverted(self._why(entry, block, gas))
        price = int(receipt.get("effectiveGasPrice", "0x0"), 16)
        log.debug("%s: done in block %d for %d gas", entry.intent, block, gas)
        return Receipt(
            receipt["transactionHash"],
            block,
            gas,
            gas * price,
            receipt.get("contractAddress"),
            receipt["logs"],
        )

    def _why(self, entry: Entry, block: int, gas: int) -> str:
        """The reason of a revert that happened on chain, as far as repeating it shows."""
        if gas == entry.transaction["gas"]:
            return "out of gas"
        call = {"from": self.address, "data": entry.transaction["data"]}
        call |= {"to": entry.transaction["to"]} if "to" in entry.transaction else {}
        (again,) = self.connection.batch([("eth_call", [call, hex(block)])])
        return revert_reason(again.data) if isinstance(again, RpcError) else "no reason given"


FEE_REQUESTS: list[tuple[str, list[Any]]] = [
    ("eth_getBlockByNumber", ["latest", False]),
    ("eth_maxPriorityFeePerGas", []),
]
"""What `suggested_fees` needs to know."""


def suggested_fees(block: Any, tip: Any) -> Fees:
    """The node's tip, over a base fee that may double: six full blocks' rise."""
    if "baseFeePerGas" not in _value(block):
        raise ChainError("the chain has no EIP-1559 fees, which is needed here: use another")
    offer = DEFAULT_TIP if isinstance(tip, RpcError) else int(tip, 16)
    return Fees(2 * int(block["baseFeePerGas"], 16) + offer, offer)


def contract_call(
    connection: Connection,
    contract: Interface,
    address: str,
    function: str,
    args: Sequence[Any],
    block: int | None = None,
) -> Any:
    """What a view returns, at a block (default: the newest).

    Raises:
        Reverted: the contract refuses.
        ChainError: the node is out of reach, or there is no such contract.
    """
    call = {"to": address, "data": "0x" + contract.encode(function, *args).hex()}
    try:
        answer = connection.call("eth_call", call, "latest" if block is None else hex(block))
    except RpcError as e:
        raise refusal(e) from e
    return contract.decode(function, len(args), bytes.fromhex(answer[2:]))


def refusal(error: RpcError) -> ChainError:
    """A failed try as what it means: the contract's reason, or the node's trouble."""
    reason = revert_reason(error.data)
    if "revert" in str(error).lower() or error.code == 3:
        if reason == "no reason given" and ":" in str(error):
            reason = str(error).partition(":")[2].strip()
        return Reverted(reason)
    return ChainError(f"the node refuses the call: {error}")


def _check_ether(address: str, balance: int, needed: int) -> None:
    if balance < needed:
        missing = (needed - balance) / 1e18
        raise ChainError(
            f"{address} has {balance / 1e18:.6f} ether, and the transaction may cost "
            f"{needed / 1e18:.6f}: send it {missing:.6f} more"
        )


def _value(answer: Any) -> Any:
    """A batch's answer, or its error raised."""
    if isinstance(answer, RpcError):
        raise answer
    return answer
