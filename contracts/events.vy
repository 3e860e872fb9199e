# pragma version 0.4.3
"""
@title What a task tells
@license Apache-2.0
@notice A client that has all events of a task has all of its state.
@dev `round` and whom it is about are indexed. RoundOpened comes again when a forgotten draw block
     is replaced; PhaseEntered names the round that the phase belongs to: IDLE is the next round's.
"""

MAX_SEATS: constant(uint256) = 79


event Registered:
    who: indexed(address)
    amount: uint256


event ToppedUp:
    who: indexed(address)
    amount: uint256
    stake: uint256


event Reactivated:
    who: indexed(address)


event Retired:
    who: indexed(address)
    round: indexed(uint256)


event Exited:
    who: indexed(address)
    amount: uint256


event Claimed:
    who: indexed(address)
    amount: uint256


event Funded:
    who: indexed(address)
    amount: uint256


event RoundOpened:
    round: indexed(uint256)
    draw_block: uint256


event CommitteeDrawn:
    round: indexed(uint256)
    seed: bytes32
    draw_block: uint256
    budget: uint256
    members: DynArray[address, MAX_SEATS]


event UpdateCommitted:
    round: indexed(uint256)
    proposer: indexed(address)
    commitment: bytes32


event Abstained:
    round: indexed(uint256)
    proposer: indexed(address)


event UpdatePublished:
    round: indexed(uint256)
    proposer: indexed(address)
    digest: bytes32
    size: uint256
    salt: bytes32


event VoteCommitted:
    round: indexed(uint256)
    voter: indexed(address)
    commitment: bytes32


event VoteRevealed:
    round: indexed(uint256)
    voter: indexed(address)
    scores: uint256
    salt: bytes32


event UpdateJudged:
    round: indexed(uint256)
    proposer: indexed(address)
    verdict: uint256
    weight: uint256


event Attested:
    round: indexed(uint256)
    voter: indexed(address)
    digest: bytes32


event PhaseEntered:
    round: indexed(uint256)
    phase: uint256
    deadline: uint256


event RoundClosed:
    round: indexed(uint256)
    outcome: uint256
    adapter: bytes32
    returned: uint256


event SeatSettled:
    round: indexed(uint256)
    who: indexed(address)
    keeper: indexed(address)
    paid: uint256
    slashed: uint256
    keeper_paid: uint256
    returned: uint256


event Cancelled:
    round: indexed(uint256)


event RestWithdrawn:
    amount: uint256
