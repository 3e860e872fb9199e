"""An ERC-20 token, for bonds and pay."""

from functools import cached_property
from typing import Any

from flockllm.chain.abi import interface
from flockllm.chain.rpc import Connection
from flockllm.chain.sender import Receipt, Sender, contract_call
from flockllm.errors import ChainError


class Token:
    """A token as `sender` sees and moves it; without a sender it can only be looked at."""

    def __init__(self, connection: Connection, address: str, sender: Sender | None = None) -> None:
        self.connection = connection
        self.address = address
        self._sender = sender

    @cached_property
    def decimals(self) -> int:
        """Digits behind the point: a whole token is 10 ** decimals of the smallest unit."""
        return int(self._read("decimals"))

    @cached_property
    def symbol(self) -> str:
        """The token's short name."""
        return str(self._read("symbol"))

    def balance(self, who: str) -> int:
        """What `who` has, in the smallest unit."""
        return int(self._read("balanceOf", who))

    def allowance(self, owner: str, spender: str) -> int:
        """What `spender` may still take from `owner`."""
        return int(self._read("allowance", owner, spender))

    def show(self, amount: int) -> str:
        """An amount as people write it, such as `12.5 FLO`."""
        whole, part = divmod(amount, 10**self.decimals)
        digits = f"{part:0{self.decimals}}".rstrip("0") if part else ""
        return f"{whole}{'.' if digits else ''}{digits} {self.symbol}"

    def approve(self, spender: str, amount: int) -> Receipt:
        """Lets `spender` take `amount` from the sender."""
        return self._send("approve", spender, amount)

    def approve_enough(self, spender: str, amount: int) -> Receipt | None:
        """Approves `amount` unless that much is approved already.

        Raises:
            ChainError: the sender has less than `amount`; says how much is missing.
        """
        who = self._owner().address
        if (missing := amount - self.balance(who)) > 0:
            raise ChainError(f"{who} lacks {self.show(missing)} of the {self.show(amount)} needed")
        allowed = self.allowance(who, spender)
        if allowed >= amount:
            return None
        if allowed:
            self.approve(spender, 0)  # some tokens change an allowance only from or to zero
        return self.approve(spender, amount)

    def transfer(self, receiver: str, amount: int) -> Receipt:
        """Moves `amount` from the sender to `receiver`."""
        return self._send("transfer", receiver, amount)

    def mint(self, receiver: str, amount: int) -> Receipt:
        """Makes new test tokens; only the test token's deployer may."""
        return self._send("mint", receiver, amount)

    def _read(self, function: str, *args: Any) -> Any:
        return contract_call(self.connection, interface("TestToken"), self.address, function, args)

    def _send(self, function: str, *args: Any) -> Receipt:
        data = interface("TestToken").encode(function, *args)
        intent = f"{self.address} {function} {' '.join(map(str, args))}"
        return self._owner().send(intent, self.address, data)

    def _owner(self) -> Sender:
        if self._sender is None:
            raise ChainError("this token was opened without a key, so it can only be looked at")
        return self._sender
