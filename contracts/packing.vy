# pragma version 0.4.3
"""
@title Packed words
@license Apache-2.0
@notice What a task keeps in one storage word each, and how it is packed. Bit ranges count from the
        lowest bit; every field is bounded far below its width.
"""


struct Clock:  # one word: the running round
    round: uint256  # 0–31
    phase: uint256  # 32–39
    since: uint256  # 40–87
    deadline: uint256  # 88–135
    draw_block: uint256  # 136–183
    waiting: uint256  # 184–191: seats that may still act in this phase; TALLY: items to judge
    done: uint256  # 192–199: seats that acted in it; TALLY: items accepted
    revealed: uint256  # 200–207: voters that revealed


struct Mark:  # one word per seat
    who: address  # 0–159
    duty: uint256  # 160–167
    verdict: uint256  # 168–175
    weight: uint256  # 176–191
    size: uint256  # 192–239
    settled: bool  # 240


struct Close:  # one word per round
    outcome: uint256  # 0–7
    last_phase: uint256  # 8–15: how far the round came
    revealed: uint256  # 16–23
    support: uint256  # 24–31: attestations of the winner
    timed_out: bool  # 32: ATTEST ended at its deadline
    draw_block: uint256  # 40–87
    weights: uint256  # 88–119: sum over the accepted


struct Standing:  # one word per participant
    registered: bool  # 0
    missed: uint256  # 8–15
    unsettled: uint256  # 16–47
    last_round: uint256  # 48–79


@pure
def unpack_clock(word: uint256) -> Clock:
    """
    @notice Reads the running round.
    """
    return Clock(
        round=word & (2**32 - 1),
        phase=(word >> 32) & 255,
        since=(word >> 40) & (2**48 - 1),
        deadline=(word >> 88) & (2**48 - 1),
        draw_block=(word >> 136) & (2**48 - 1),
        waiting=(word >> 184) & 255,
        done=(word >> 192) & 255,
        revealed=(word >> 200) & 255,
    )


@pure
def pack_clock(clock: Clock) -> uint256:
    """
    @notice Writes the running round.
    """
    return (
        clock.round
        | (clock.phase << 32)
        | (clock.since << 40)
        | (clock.deadline << 88)
        | (clock.draw_block << 136)
        | (clock.waiting << 184)
        | (clock.done << 192)
        | (clock.revealed << 200)
    )


@pure
def unpack_mark(word: uint256) -> Mark:
    """
    @notice Reads a seat.
    """
    return Mark(
        who=convert(word & (2**160 - 1), address),
        duty=(word >> 160) & 255,
        verdict=(word >> 168) & 255,
        weight=(word >> 176) & 65_535,
        size=(word >> 192) & (2**48 - 1),
        settled=(word >> 240) & 1 == 1,
    )


@pure
def pack_mark(mark: Mark) -> uint256:
    """
    @notice Writes a seat.
    """
    return (
        convert(mark.who, uint256)
        | (mark.duty << 160)
        | (mark.verdict << 168)
        | (mark.weight << 176)
        | (mark.size << 192)
        | (convert(mark.settled, uint256) << 240)
    )


@pure
def unpack_close(word: uint256) -> Close:
    """
    @notice Reads how a round ended.
    """
    return Close(
        outcome=word & 255,
        last_phase=(word >> 8) & 255,
        revealed=(word >> 16) & 255,
        support=(word >> 24) & 255,
        timed_out=(word >> 32) & 1 == 1,
        draw_block=(word >> 40) & (2**48 - 1),
        weights=(word >> 88) & (2**32 - 1),
    )


@pure
def pack_close(close: Close) -> uint256:
    """
    @notice Writes how a round ended.
    """
    return (
        close.outcome
        | (close.last_phase << 8)
        | (close.revealed << 16)
        | (close.support << 24)
        | (convert(close.timed_out, uint256) << 32)
        | (close.draw_block << 40)
        | (close.weights << 88)
    )


@pure
def unpack_standing(word: uint256) -> Standing:
    """
    @notice Reads a participant.
    """
    return Standing(
        registered=word & 1 == 1,
        missed=(word >> 8) & 255,
        unsettled=(word >> 16) & (2**32 - 1),
        last_round=(word >> 48) & (2**32 - 1),
    )


@pure
def pack_standing(standing: Standing) -> uint256:
    """
    @notice Writes a participant.
    """
    return (
        convert(standing.registered, uint256)
        | (standing.missed << 8)
        | (standing.unsettled << 16)
        | (standing.last_round << 48)
    )
