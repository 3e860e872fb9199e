"""withdraw_rest: what is left belongs to the creator, in the end."""

from dataclasses import replace

import boa
import pytest

from flockllm.rounds import Phase
from tests.contracts.play import CREATOR, STRANGER, TERMS, Play


def test_the_rest_is_the_creators_after_the_last_round():
    """Again and again, as settlements return more; in the end every token has left."""
    play = Play(replace(TERMS, rounds=1)).until(Phase.TRAIN)
    play.train(without=play.proposers[:1])
    play.publish()
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()
    assert play.phase == Phase.FINISHED

    play.task.withdraw_rest(sender=CREATOR)
    with boa.reverts("task: nothing to withdraw"):
        play.task.withdraw_rest(sender=CREATOR)
    play.settle(1)
    assert play.state.pool > 0  # of a fine
    play.task.withdraw_rest(sender=CREATOR)
    for who in play.people:
        play.task.exit(sender=who)
    for who in [*play.people, CREATOR]:
        play.task.claim(sender=who)
    play.assert_money_adds_up()
    assert play.task.pool() == play.task.allotted() == 0


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.ATTEST, Phase.IDLE])
def test_not_before_the_end(phase):
    """A pool once given pays rounds."""
    play = Play().until(phase)
    with boa.reverts("task: not over"):
        play.task.withdraw_rest(sender=CREATOR)


def test_only_the_creator():
    """Nobody else, ever."""
    play = Play(replace(TERMS, rounds=1)).until(Phase.IDLE)
    with boa.reverts("task: not the creator"):
        play.task.withdraw_rest(sender=STRANGER)
