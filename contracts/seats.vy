# pragma version 0.4.3
"""
@title The active participants, and the committee drawn from them
@license Apache-2.0
@notice A list without holes. Who joins goes to its end; when one leaves, the last takes its place.
@dev `place` is 1-based: 0 means not active. The draw is a partial Fisher–Yates shuffle: its cost
     depends on the number of seats alone. Its swaps live in transient storage under the round's
     number and are forgotten, so a draw leaves the list as it was.
"""

MAX_SEATS: constant(uint256) = 79

active: uint256
members: HashMap[uint256, address]
place: HashMap[address, uint256]

_moved: transient(HashMap[uint256, HashMap[uint256, uint256]])  # round -> index -> index + 1


def join(who: address):
    """
    @notice Puts `who` at the end of the list, unless it is there already.
    """
    if self.place[who] == 0:
        self.members[self.active] = who
        self.active += 1
        self.place[who] = self.active


def leave(who: address):
    """
    @notice Takes `who` off the list, if it is there; the last member fills the hole.
    """
    place: uint256 = self.place[who]
    if place == 0:
        return
    last: address = self.members[self.active - 1]
    self.members[place - 1] = last
    self.place[last] = place
    self.place[who] = 0
    self.active -= 1
    self.members[self.active] = empty(address)


def draw(round: uint256, seed: bytes32, count: uint256) -> DynArray[address, MAX_SEATS]:
    """
    @notice Draws `count` different members: seat i is what the i-th step of the shuffle puts at i,
            with j = i + keccak256(seed, i) mod (active - i) and i, j swapped.
    @dev Assumes count ≤ active and that no round draws twice within a transaction.
    """
    drawn: DynArray[address, MAX_SEATS] = []
    for i: uint256 in range(count, bound=MAX_SEATS):
        pick: uint256 = convert(keccak256(abi_encode(seed, i)), uint256) % (self.active - i)
        j: uint256 = i + pick
        drawn.append(self.members[self._at(round, j)])
        self._moved[round][j] = self._at(round, i) + 1
    return drawn


@view
def _at(round: uint256, index: uint256) -> uint256:
    """
    @notice Which member's index the shuffle has at `index` by now.
    """
    moved: uint256 = self._moved[round][index]
    return index if moved == 0 else moved - 1
