# pragma version 0.4.3
"""
@title A token that misbehaves on demand
@notice For tests: returns false, takes a fee, keeps a blacklist, or calls back in the middle.
"""

balanceOf: public(HashMap[address, uint256])
refuses: public(bool)
fee: public(uint256)
bonus: public(uint256)
blacklist: public(HashMap[address, bool])
target: public(address)
payload: public(Bytes[260])
reentered: public(bool)


@external
def mint(receiver: address, amount: uint256):
    self.balanceOf[receiver] += amount


@external
def approve(spender: address, amount: uint256) -> bool:
    return True


@external
def refuse(refuses: bool):
    self.refuses = refuses


@external
def take(fee: uint256, bonus: uint256):
    self.fee = fee
    self.bonus = bonus


@external
def ban(who: address, banned: bool):
    self.blacklist[who] = banned


@external
def call_back(target: address, payload: Bytes[260]):
    self.target = target
    self.payload = payload


@external
def transfer(receiver: address, amount: uint256) -> bool:
    return self._move(msg.sender, receiver, amount)


@external
def transferFrom(sender: address, receiver: address, amount: uint256) -> bool:
    return self._move(sender, receiver, amount)


def _move(sender: address, receiver: address, amount: uint256) -> bool:
    if self.refuses:
        return False
    assert not self.blacklist[sender] and not self.blacklist[receiver], "token: banned"
    if self.target != empty(address):
        self.reentered = raw_call(self.target, self.payload, revert_on_failure=False)
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount - self.fee + self.bonus
    return True
