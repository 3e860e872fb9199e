"""open_round: a committee is asked for."""

from dataclasses import replace

import boa
import pytest

from flockllm.rounds import Phase
from tests.contracts.play import STRANGER, TERMS, Play


def test_anyone_opens_a_round():
    """The draw block is the next one: nobody knows its hash yet."""
    play = Play()
    play.task.open_round(sender=STRANGER)
    state = play.state
    assert (state.phase, state.round, state.deadline) == (Phase.DRAW, 1, 0)
    assert state.draw_block == boa.env.evm.patch.block_number + 1
    assert play.view().seats == ()


def test_a_committee_must_be_there():
    """P + V participants are enough, one less is not."""
    play = Play(people=TERMS.committee - 1)
    with boa.reverts("task: too few participants"):
        play.task.open_round()
    play.register(STRANGER)
    play.task.open_round()


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.TALLY, Phase.ATTEST])
def test_rounds_do_not_overlap(phase):
    """Opening needs an idle task."""
    play = Play().until(phase)
    with boa.reverts("task: wrong phase"):
        play.task.open_round()


def test_a_finished_task_opens_nothing():
    """After the last round there is no next."""
    play = Play(replace(TERMS, rounds=1)).until(Phase.IDLE)
    assert play.phase == Phase.FINISHED
    assert play.round == 2
    with boa.reverts("task: wrong phase"):
        play.task.open_round()
