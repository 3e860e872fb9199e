"""A task contract as Python: look at it in one call, act on it, read what happened.

What each call does and who may make it is in `docs/protocol.md`; this is only its face. Every
call waits for its receipt and raises `Reverted` with the contract's reason if it refuses.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from flockllm.chain.abi import Event, interface
from flockllm.chain.rpc import Connection, RpcError
from flockllm.chain.sender import Receipt, Sender, contract_call
from flockllm.chain.token import Token
from flockllm.errors import ChainError
from flockllm.rounds import (
    Address,
    Duty,
    Outcome,
    Participant,
    Phase,
    RoundResult,
    Seat,
    State,
    Terms,
    Verdict,
    View,
    pack_scores,
    unpack_scores,
)

TALLY_PIECE = 4
"""Items judged in one call: bounded gas with many voters."""


class Task:
    """One task on one chain. Without a sender it can only be looked at."""

    def __init__(
        self, connection: Connection, address: Address, sender: Sender | None = None
    ) -> None:
        self.connection = connection
        self.address = address
        self._sender = sender

    # Looking

    @property
    def chain_id(self) -> int:
        """The chain that the task is on; part of every commitment."""
        return self.connection.chain_id

    @cached_property
    def terms(self) -> Terms:
        """What the creator fixed."""
        return Terms(**self._read("terms"))

    @cached_property
    def token(self) -> Token:
        """The token of bonds and pay."""
        return Token(self.connection, self._read("token"), self._sender)

    @cached_property
    def creator(self) -> Address:
        """Who may cancel, and withdraw the rest."""
        return str(self._read("creator"))

    @cached_property
    def spec_digest(self) -> bytes:
        """Digest of the task definition, 32 bytes."""
        return bytes(self._read("spec_digest"))

    @cached_property
    def initial_adapter(self) -> bytes:
        """Digest of the global adapter before the first round."""
        return bytes(self._read("initial_adapter"))

    def look(self, who: Address, block: int | None = None) -> View:
        """All that `who` needs to decide what to do, at one block (default: the newest).

        With a sender, first sends again what a reorganisation took back from it.
        """
        if self._sender:
            self._sender.mend()
        state, seats, me = self._read("look", who, block=block)
        state = State(**{**state, "phase": Phase(state["phase"])})
        return View(state, tuple(map(self._seat, seats)), Participant(**me))

    def seats(self, round_: int, block: int | None = None) -> tuple[Seat, ...]:
        """A round's committee, proposers first; empty before its draw."""
        return tuple(map(self._seat, self._read("seats", round_, block=block)))

    def result(self, round_: int) -> RoundResult:
        """What is left of a round; its outcome is OPEN until it is closed."""
        outcome, *rest = self._read("round_result", round_)
        return RoundResult(Outcome(outcome), *rest)

    def participant(self, who: Address) -> Participant:
        """What the contract knows of `who`."""
        return Participant(**self._read("participants", who))

    def entropy(self) -> int:
        """The salts revealed since the last draw, combined: part of the next seed."""
        return int(self._read("entropy"))

    def members(self) -> list[Address]:
        """The active participants, in the order that seats are drawn from."""
        active = self.look(self.address).state.active
        return [self._read("active_member", i) for i in range(active)]

    def events(self, from_block: int = 0, to_block: int | None = None) -> Iterator[Event]:
        """What happened, in order. Asks for less at a time where the node limits the range."""
        last = self.connection.head().number if to_block is None else to_block
        start, span = from_block, last - from_block + 1
        while start <= last:
            stop = min(last, start + span - 1)
            where = {"address": self.address, "fromBlock": hex(start), "toBlock": hex(stop)}
            try:
                logs = self.connection.call("eth_getLogs", where)
            except RpcError:
                if span == 1:
                    raise
                span = max(1, span // 4)
                continue
            for log in logs:
                if event := interface("Task").event(log):
                    yield event
            start, span = stop + 1, span * 2

    # Taking part

    def register(self, amount: int) -> Receipt:
        """Puts in the first stake (approving it to the task) and joins."""
        self.token.approve_enough(self.address, amount)
        return self._send("register", amount)

    def top_up(self, amount: int) -> Receipt:
        """Adds to the stake (approving it to the task)."""
        self.token.approve_enough(self.address, amount)
        return self._send("top_up", amount)

    def reactivate(self) -> Receipt:
        """Comes back after three no-shows in a row."""
        return self._send("reactivate")

    def exit(self) -> Receipt:
        """Leaves; the stake becomes claimable."""
        return self._send("exit")

    def claim(self) -> Receipt:
        """Moves what is claimable to the sender."""
        return self._send("claim")

    def fund(self, amount: int) -> Receipt:
        """Adds to the pool (approving it to the task)."""
        self.token.approve_enough(self.address, amount)
        return self._send("fund", amount)

    # A round's way

    def open_round(self) -> Receipt:
        """Asks for a committee."""
        return self._send("open_round")

    def draw(self) -> Receipt:
        """Draws the committee."""
        return self._send("draw")

    def commit_update(self, round_: int, commitment: bytes) -> Receipt:
        """Binds the sender to an update, see `rounds.commitment`."""
        return self._send("commit_update", round_, commitment)

    def abstain(self, round_: int) -> Receipt:
        """Says that there is no update worth proposing."""
        return self._send("abstain", round_)

    def publish_update(self, round_: int, digest: bytes, size: int, salt: bytes) -> Receipt:
        """Shows the update that was committed."""
        return self._send("publish_update", round_, digest, size, salt)

    def commit_vote(self, round_: int, commitment: bytes) -> Receipt:
        """Binds the sender to its scores."""
        return self._send("commit_vote", round_, commitment)

    def reveal_vote(self, round_: int, scores: tuple[int, ...] | int, salt: bytes) -> Receipt:
        """Shows the scores that were committed, by proposer seat, or packed already."""
        packed = scores if isinstance(scores, int) else pack_scores(scores)
        return self._send("reveal_vote", round_, packed, salt)

    def tally(self, limit: int = TALLY_PIECE) -> Receipt:
        """Has up to `limit` more updates judged."""
        return self._send("tally", limit)

    def attest(self, round_: int, digest: bytes) -> Receipt:
        """Names the adapter that the sender computed, or the current one to keep that."""
        return self._send("attest", round_, digest)

    def advance(self) -> Receipt:
        """Ends a phase whose deadline has passed."""
        return self._send("advance")

    def settle(self, round_: int, who: Address) -> Receipt:
        """Pays or slashes one seat of a closed round."""
        return self._send("settle", round_, who)

    # The creator

    def cancel(self) -> Receipt:
        """Gives up a task that finds no participants."""
        return self._send("cancel")

    def withdraw_rest(self) -> Receipt:
        """Makes what is left of a finished task claimable."""
        return self._send("withdraw_rest")

    def _seat(self, seat: Mapping[str, Any]) -> Seat:
        voted = seat["voter"] and seat["duty"] == Duty.DONE
        scores = unpack_scores(seat["scores"], self.terms.proposers) if voted else ()
        return Seat(
            **{
                **seat,
                "duty": Duty(seat["duty"]),
                "verdict": Verdict(seat["verdict"]),
                "scores": scores,
            }
        )

    def _read(self, function: str, *args: Any, block: int | None = None) -> Any:
        task = interface("Task")
        return contract_call(self.connection, task, self.address, function, args, block)

    def _send(self, function: str, *args: Any) -> Receipt:
        if self._sender is None:
            raise ChainError("this task was opened without a key, so it can only be looked at")
        shown = " ".join(f"0x{a.hex()}" if isinstance(a, bytes) else str(a) for a in args)
        intent = f"{self.address} {function} {shown}".strip()
        return self._sender.send(intent, self.address, interface("Task").encode(function, *args))
