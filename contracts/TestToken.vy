# pragma version 0.4.3
# pragma evm-version cancun
"""
@title A token for test networks
@license Apache-2.0
@notice A plain ERC-20 whose minter makes tokens out of nothing. Worth nothing, on purpose.
"""

from ethereum.ercs import IERC20

implements: IERC20


decimals: public(constant(uint8)) = 18
minter: public(immutable(address))
name: public(String[32])
symbol: public(String[8])
totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])


@deploy
def __init__(name_: String[32], symbol_: String[8]):
    """
    @notice Makes a token without supply; the deployer mints.
    """
    self.name = name_
    self.symbol = symbol_
    minter = msg.sender


@external
def mint(receiver: address, amount: uint256):
    """
    @notice Makes `amount` new tokens for `receiver`. The minter only.
    """
    assert msg.sender == minter, "token: not the minter"

    self.totalSupply += amount
    self.balanceOf[receiver] += amount

    log IERC20.Transfer(sender=empty(address), receiver=receiver, value=amount)


@external
def transfer(receiver: address, amount: uint256) -> bool:
    """
    @notice Moves `amount` from the caller to `receiver`.
    """
    self._move(msg.sender, receiver, amount)
    return True


@external
def transferFrom(sender: address, receiver: address, amount: uint256) -> bool:
    """
    @notice Moves `amount` from `sender`, who has approved it to the caller, to `receiver`.
    """
    allowed: uint256 = self.allowance[sender][msg.sender]
    assert allowed >= amount, "token: not approved"
    if allowed < max_value(uint256):
        self.allowance[sender][msg.sender] = allowed - amount
    self._move(sender, receiver, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Lets `spender` move `amount` of the caller's tokens; the greatest number means always.
    """
    self.allowance[msg.sender][spender] = amount

    log IERC20.Approval(owner=msg.sender, spender=spender, value=amount)
    return True


def _move(sender: address, receiver: address, amount: uint256):
    """
    @notice Moves tokens, if there are so many.
    """
    assert self.balanceOf[sender] >= amount, "token: too little"

    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount

    log IERC20.Transfer(sender=sender, receiver=receiver, value=amount)
