# pragma version 0.4.3
"""
@title The money of a task
@license Apache-2.0
@notice Every token that a task holds is in exactly one of four places: a participant's stake, the
        pool, the allotted budgets of rounds not yet settled, or what somebody may claim.
        balance = Σ stake + pool + allotted + Σ claimable   (invariant I1)
@dev The only code that moves tokens. They come in by `pull` and go out by `push` alone; everything
     else moves amounts between the four places. A transfer to the task outside of `pull` is a gift
     that nobody can take out; the left side of I1 is then the larger.
"""

from ethereum.ercs import IERC20

MAX_AMOUNT: constant(uint256) = 2**128 - 1

token: public(immutable(address))

pool: public(uint256)
allotted: public(uint256)
stake: HashMap[address, uint256]
deposited: HashMap[address, uint256]
claimable: HashMap[address, uint256]


@deploy
def __init__(token_: address):
    """
    @param token_ An ERC-20 that takes no fee and does not rebase.
    """
    token = token_


# tokens in and out: the last act of whoever calls, under the caller's lock


def pull(amount: uint256):
    """
    @notice Takes `amount` from the caller, who must have approved it.
    @dev Reverts if the token refuses or delivers another amount. Amounts are capped so that no
         product of an amount and a share or weight can overflow.
    """
    assert amount <= MAX_AMOUNT, "task: amount too large"
    before: uint256 = staticcall IERC20(token).balanceOf(self)
    assert extcall IERC20(token).transferFrom(
        msg.sender, self, amount, default_return_value=True
    ), "task: token refused"
    after: uint256 = staticcall IERC20(token).balanceOf(self)
    assert after == before + amount, "task: token took a fee"


def push(to: address, amount: uint256):
    """
    @notice Sends `amount` to `to`; if the token refuses, all is undone.
    """
    assert extcall IERC20(token).transfer(
        to, amount, default_return_value=True
    ), "task: token refused"


# between the four places


def deposit(who: address, amount: uint256):
    """
    @notice Books `amount`, to be pulled by the caller, as `who`'s stake.
    """
    self.stake[who] += amount
    self.deposited[who] += amount


def release(who: address) -> uint256:
    """
    @notice Makes the whole stake of `who` claimable and returns it.
    """
    amount: uint256 = self.stake[who]
    self.stake[who] = 0
    self.claimable[who] += amount
    return amount


def take(who: address) -> uint256:
    """
    @notice Clears and returns what `who` may claim, to be pushed by the caller.
    """
    amount: uint256 = self.claimable[who]
    assert amount > 0, "task: nothing to claim"
    self.claimable[who] = 0
    return amount


def fund(amount: uint256):
    """
    @notice Books `amount`, to be pulled by the caller, to the pool.
    """
    self.pool += amount


def drain(to: address) -> uint256:
    """
    @notice Makes the whole pool claimable by `to` and returns it.
    """
    amount: uint256 = self.pool
    self.pool = 0
    self.claimable[to] += amount
    return amount


def allot(parts: uint256) -> uint256:
    """
    @notice Sets one of `parts` equal parts of the pool aside as a round's budget, and returns it.
    """
    budget: uint256 = self.pool // parts
    self.pool -= budget
    self.allotted += budget
    return budget


def pay(who: address, amount: uint256):
    """
    @notice Makes `amount` of the allotted claimable by `who`.
    """
    self.allotted -= amount
    self.claimable[who] += amount


def give_back(amount: uint256):
    """
    @notice Returns `amount` of the allotted to the pool.
    """
    self.allotted -= amount
    self.pool += amount


def slash(who: address, amount: uint256, keeper: address, keeper_paid: uint256):
    """
    @notice Takes `amount` out of `who`'s stake: `keeper_paid` to `keeper`, the rest to the pool.
    """
    self.stake[who] -= amount
    self.pool += amount - keeper_paid
    if keeper_paid > 0:
        self.claimable[keeper] += keeper_paid
