# pragma version 0.4.3
"""
@title The terms of a task
@license Apache-2.0
@notice What a creator fixes when a task is made, and the limits within which it may.
@dev Margins and scores are in units of 1/10 000 relative loss change, shares and slashes in basis
     points (bps), lengths in seconds, amounts in the token's smallest unit.
"""

BPS: constant(uint256) = 10_000
MAX_PROPOSERS: constant(uint256) = 16
MAX_VOTERS: constant(uint256) = 63
MAX_ROUNDS: constant(uint256) = 10_000
MAX_AMOUNT: constant(uint256) = 2**128 - 1
MAX_SECONDS: constant(uint256) = 2**32 - 1


struct Terms:
    rounds: uint256
    proposers: uint256  # P, drawn per round to train
    voters: uint256  # V, drawn per round to judge
    bond: uint256  # what a participant must have at stake to be drawn
    proposer_share: uint256  # bps of a round's budget; the rest is the voters'
    accept_margin: uint256  # a score of at least this speaks for an update
    strong_margin: uint256  # M: a score ≤ -M calls an update harmful, ≥ M good beyond doubt
    score_cap: uint256  # no update weighs more than this
    slash_no_show: uint256  # drawn and did nothing; like all slashes in bps of the bond
    slash_silent: uint256  # committed, then not published or not revealed
    slash_invalid: uint256  # published what at least K voters call invalid
    slash_harmful: uint256  # published what at least K voters call harmful
    slash_contradiction: uint256  # per score that contradicts at least K other voters strongly
    slash_contradictions: uint256  # at most, for all of a seat's contradictions together
    slash_attestation: uint256  # attested another digest than at least K voters
    keeper_share: uint256  # bps of a slash, to whoever settles the slashed seat
    train_seconds: uint256
    publish_seconds: uint256
    evaluate_seconds: uint256
    reveal_seconds: uint256
    attest_seconds: uint256
    idle_timeout: uint256  # after so long without enough participants the creator may cancel


@pure
def check(terms: Terms):
    """
    @notice Reverts with the reason if the terms are outside their limits.
    @param terms What a creator proposes.
    """
    assert 1 <= terms.rounds and terms.rounds <= MAX_ROUNDS, "terms: rounds"
    assert 1 <= terms.proposers and terms.proposers <= MAX_PROPOSERS, "terms: proposers"
    assert 1 <= terms.voters and terms.voters <= MAX_VOTERS, "terms: voters"
    assert 1 <= terms.bond and terms.bond <= MAX_AMOUNT, "terms: bond"
    assert terms.proposer_share <= BPS, "terms: proposer_share"
    assert terms.accept_margin <= 1_000, "terms: accept_margin"
    assert terms.accept_margin < terms.strong_margin, "terms: strong_margin"
    assert terms.strong_margin <= terms.score_cap, "terms: score_cap"
    assert terms.score_cap <= 10_000, "terms: score_cap"
    assert terms.slash_no_show <= BPS, "terms: slash_no_show"
    assert terms.slash_silent <= BPS, "terms: slash_silent"
    assert terms.slash_invalid <= BPS, "terms: slash_invalid"
    assert terms.slash_harmful <= BPS, "terms: slash_harmful"
    assert terms.slash_contradiction <= BPS, "terms: slash_contradiction"
    assert terms.slash_contradictions <= BPS, "terms: slash_contradictions"
    assert terms.slash_attestation <= BPS, "terms: slash_attestation"
    assert terms.keeper_share <= BPS, "terms: keeper_share"
    assert self._lasts(terms.train_seconds), "terms: train_seconds"
    assert self._lasts(terms.publish_seconds), "terms: publish_seconds"
    assert self._lasts(terms.evaluate_seconds), "terms: evaluate_seconds"
    assert self._lasts(terms.reveal_seconds), "terms: reveal_seconds"
    assert self._lasts(terms.attest_seconds), "terms: attest_seconds"
    assert self._lasts(terms.idle_timeout), "terms: idle_timeout"


@pure
def _lasts(length: uint256) -> bool:
    """
    @notice Whether a length is at least a second and fits where deadlines are packed.
    """
    return 1 <= length and length <= MAX_SECONDS
