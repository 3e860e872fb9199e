"""advance: whoever is missing, the round goes on at the deadline."""

import boa
import pytest

from flockllm.rounds import Outcome, Phase
from tests.contracts.play import POOL, STRANGER, TERMS, Play


def fine(bps: int) -> int:
    """A slash."""
    return TERMS.bond * bps // 10_000


@pytest.mark.parametrize(
    "phase", [Phase.TRAIN, Phase.PUBLISH, Phase.EVALUATE, Phase.REVEAL, Phase.ATTEST]
)
def test_anyone_may_advance_from_the_deadline_on(phase):
    """Not a second earlier."""
    play = Play().until(phase)
    left = play.state.deadline - boa.env.timestamp
    boa.env.time_travel(seconds=left - 1)
    with boa.reverts("task: too early"):
        play.task.advance(sender=STRANGER)
    boa.env.time_travel(seconds=1)
    play.task.advance(sender=STRANGER)
    assert play.phase != phase


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.TALLY])
def test_phases_without_deadline_wait_for_their_own_call(phase):
    """open_round and tally are open to anyone."""
    play = Play().until(phase)
    boa.env.time_travel(seconds=10**6)
    with boa.reverts("task: nothing to advance"):
        play.task.advance()


def test_a_forgotten_draw_block_is_replaced():
    """Nobody can void a round by drawing late."""
    play = Play()
    play.task.open_round()
    old = play.state.draw_block
    boa.env.time_travel(blocks=257, block_delta=1)
    with boa.reverts("task: too early"):
        play.task.advance()
    boa.env.time_travel(blocks=1, block_delta=1)
    play.task.advance(sender=STRANGER)
    assert play.phase == Phase.DRAW
    assert play.state.draw_block == boa.env.evm.patch.block_number + 1 == old + 258
    boa.env.time_travel(blocks=2, block_delta=1)
    play.task.draw()
    assert play.phase == Phase.TRAIN


@pytest.mark.parametrize("missing", [0, 1])
def test_a_proposer_that_does_not_train_is_fined(missing):
    """The other's update is judged without it."""
    play = Play().until(Phase.TRAIN)
    who = play.proposers[missing]
    play.train(without=[who])
    assert play.phase == Phase.PUBLISH
    assert play.view(who).me.missed == 1
    play.publish()
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()
    play.settle(1)
    assert play.stake(who) == TERMS.bond - fine(TERMS.slash_no_show)
    assert play.claimable(who) == 0
    play.assert_money_adds_up()


def test_a_proposer_that_does_not_publish_is_fined():
    """More than one that said nothing: others waited for it."""
    play = Play().until(Phase.PUBLISH)
    who = play.proposers[0]
    play.publish(without=[who])
    assert play.phase == Phase.EVALUATE
    assert play.view(who).me.missed == 0
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()
    play.settle(1)
    assert play.stake(who) == TERMS.bond - fine(TERMS.slash_silent)


def test_nothing_published_is_a_void_round():
    """The proposers pay for their silence, the voters had no duty."""
    play = Play().until(Phase.PUBLISH)
    people, voters = play.proposers, play.voters
    play.publish(without=people)
    result = play.result(1)
    assert (result.outcome, result.evaluated) == (Outcome.VOID, False)
    assert play.state.pool == POOL
    play.settle(1)
    assert [play.stake(who) for who in people] == [TERMS.bond - fine(TERMS.slash_silent)] * 2
    assert [play.stake(who) for who in voters] == [TERMS.bond] * 3


def test_a_voter_that_does_not_vote_is_fined():
    """Two of three are a majority: the round goes on."""
    play = Play().until(Phase.EVALUATE)
    who = play.voters[0]
    play.vote(play.good, without=[who])
    assert play.phase == Phase.REVEAL
    assert play.view(who).me.missed == 1
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()
    play.settle(1)
    assert play.stake(who) == TERMS.bond - fine(TERMS.slash_no_show)


def test_too_few_votes_are_a_void_round():
    """Who voted is not fined for a reveal that never came, the others for their absence."""
    play = Play().until(Phase.EVALUATE)
    present, *absent = play.voters
    proposers = play.proposers
    play.vote(play.good, without=absent)
    result = play.result(1)
    assert (result.outcome, result.evaluated) == (Outcome.VOID, True)
    assert play.state.pool == POOL
    play.settle(1)
    assert [play.stake(who) for who in absent] == [TERMS.bond - fine(TERMS.slash_no_show)] * 2
    assert [play.stake(who) for who in [present, *proposers]] == [TERMS.bond] * 3
    assert play.task.allotted() == 0


def test_a_voter_that_does_not_reveal_is_fined():
    """Two revealed votes of three carry the round."""
    play = Play().until(Phase.REVEAL)
    who = play.voters[0]
    play.reveal(play.good, without=[who])
    assert play.phase == Phase.TALLY
    play.task.tally(2)
    play.attest()
    play.settle(1)
    assert play.stake(who) == TERMS.bond - fine(TERMS.slash_silent)
    assert play.claimable(who) == 0


def test_too_few_revealed_votes_are_a_void_round():
    """Now silence is fined, and who revealed gets nothing and loses nothing."""
    play = Play().until(Phase.REVEAL)
    open_, *silent = play.voters
    proposers = play.proposers
    play.reveal(play.good, without=silent)
    assert play.result(1).outcome == Outcome.VOID
    assert play.state.pool == POOL
    play.settle(1)
    assert [play.stake(who) for who in silent] == [TERMS.bond - fine(TERMS.slash_silent)] * 2
    assert [play.stake(who) for who in [open_, *proposers]] == [TERMS.bond] * 3
    assert all(play.claimable(who) == 0 for who in play.people)


def test_nobody_at_all():
    """A round of which nobody takes notice costs its proposers and nobody else."""
    play = Play().until(Phase.TRAIN)
    everyone = play.people
    voters = play.voters
    boa.env.time_travel(seconds=10**6)
    play.task.advance()
    assert play.result(1).outcome == Outcome.VOID
    play.settle(1)
    assert all(play.stake(who) == TERMS.bond for who in voters)
    assert sum(play.stake(who) < TERMS.bond for who in everyone) == 2


def test_the_next_phase_starts_when_the_last_is_ended():
    """A late advance gives everyone the full length of the next phase."""
    play = Play().until(Phase.TRAIN)
    play.commit_update(play.proposers[0])
    boa.env.time_travel(seconds=10**6)
    play.task.advance()
    assert play.state.deadline == boa.env.timestamp + TERMS.publish_seconds
