# pragma version 0.4.3
"""
@title What scores say
@license Apache-2.0
@notice Pure functions over packed scores. A voter's word holds one int16 per proposer seat: seat
        i in bits 16·i … 16·i + 15, two's complement; 1/10 000 relative loss change, or INVALID,
        which is -32 768.
@dev A score is handled as score + 32 768, an unsigned number of the same order; 0 is INVALID.
"""

MAX_VOTERS: constant(uint256) = 63
BIAS: constant(uint256) = 32_768

UNJUDGED: constant(uint256) = 0
INVALID: constant(uint256) = 1
HARMFUL: constant(uint256) = 2
NEUTRAL: constant(uint256) = 3
ACCEPTED: constant(uint256) = 4


struct Counts:
    good: uint256  # scores ≥ the accept margin
    low: uint256  # scores ≤ -M, INVALID among them
    high: uint256  # scores ≥ M
    invalid: uint256


@pure
def biased(word: uint256, item: uint256) -> uint256:
    """
    @notice The score of `item` in a voter's word, plus 32 768.
    """
    return ((word >> (16 * item)) & 65_535) ^ BIAS


@pure
def count(
    scores: DynArray[uint256, MAX_VOTERS], accept_margin: uint256, strong_margin: uint256
) -> Counts:
    """
    @notice How many of the (biased) scores of one item are on which side of which margin.
    """
    counts: Counts = empty(Counts)
    for score: uint256 in scores:
        if score >= BIAS + accept_margin:
            counts.good += 1
            if score >= BIAS + strong_margin:
                counts.high += 1
        elif score <= BIAS - strong_margin:
            counts.low += 1
            if score == 0:
                counts.invalid += 1
    return counts


@pure
def verdict(counts: Counts, most: uint256, majority: uint256) -> uint256:
    """
    @notice What the counts make of an update.
    @dev `majority` scores ≥ the margin out of at most V imply that the lower median is, too.
    @param most K = ceil(2V/3), what a condemnation takes.
    @param majority A = floor(V/2) + 1, what an acceptance takes. Both of the voters drawn.
    """
    if counts.invalid >= most:
        return INVALID
    if counts.low >= most:
        return HARMFUL
    if counts.good >= majority:
        return ACCEPTED
    return NEUTRAL


@pure
def weight(scores: DynArray[uint256, MAX_VOTERS], cap: uint256) -> uint256:
    """
    @notice The lower third score, sorted[(n - 1) // 3], held within 0 and `cap`.
    @dev By bisection: the largest x in [0, cap] that has at most (n - 1) // 3 scores below it.
    """
    below: uint256 = (len(scores) - 1) // 3
    least: uint256 = BIAS
    greatest: uint256 = BIAS + cap
    for _: uint256 in range(14):  # 2**14 > 10 000 ≥ cap
        if least == greatest:
            break
        middle: uint256 = (least + greatest + 1) // 2
        smaller: uint256 = 0
        for score: uint256 in scores:
            if score < middle:
                smaller += 1
        if smaller <= below:
            least = middle
        else:
            greatest = middle - 1
    return least - BIAS
