"""reveal_vote: scores become known, all in one phase."""

import boa
import pytest

from flockllm import rounds
from flockllm.rounds import Duty, Phase
from tests.contracts.play import STRANGER, TERMS, Play


@pytest.fixture
def play():
    """A round in REVEAL."""
    return Play().until(Phase.REVEAL)


def test_revealed_scores_are_read_as_signed_numbers():
    """From INVALID to the greatest, one per proposer seat."""
    scores = [rounds.INVALID, 32_767]
    play = Play().until(Phase.TALLY, lambda _: scores)
    assert all(seat.scores == tuple(scores) for seat in play.view().seats if seat.voter)


def test_the_opening_must_fit(play):
    """Other scores or another salt: refused."""
    first, second, _ = play.voters
    with boa.reverts("task: wrong opening"):
        play.reveal_vote(first, [50, 49])
    with boa.reverts("task: wrong opening"):
        packed = rounds.pack_scores([50, 50])
        play.task.reveal_vote(1, packed, play.salt(second), sender=first)


@pytest.mark.parametrize("foreign", ["chain", "task", "round", "sender"])
def test_votes_made_elsewhere_do_not_open(foreign):
    """Copying a commitment is useless: the words name chain, task, round and voter."""
    play = Play().until(Phase.EVALUATE)
    who, other, _ = play.voters
    words = {
        "chain": boa.env.evm.patch.chain_id,
        "task": play.task.address,
        "round": 1,
        "sender": who,
    }
    words[foreign] = {"chain": 5, "task": STRANGER, "round": 2, "sender": other}[foreign]
    content = rounds.word(rounds.pack_scores([50, 50]))
    made = rounds.commitment(*words.values(), content, play.salt(who))
    play.task.commit_vote(1, made, sender=who)
    play.vote(play.good, without=[who])
    with boa.reverts("task: wrong opening"):
        play.reveal_vote(who, [50, 50])


def test_refusals(play):
    """Not a voter, another round, twice, late."""
    first, second, third = play.voters
    for who in (*play.proposers, STRANGER):
        with boa.reverts("task: not a voter"):
            play.reveal_vote(who, [50, 50])
    with boa.reverts("task: wrong round"):
        play.task.reveal_vote(2, 0, bytes(32), sender=first)
    play.reveal_vote(first, [50, 50])
    with boa.reverts("task: no open commitment"):
        play.reveal_vote(first, [50, 50])
    boa.env.time_travel(seconds=TERMS.reveal_seconds - 1)
    play.reveal_vote(second, [50, 50])
    boa.env.time_travel(seconds=1)
    with boa.reverts("task: late"):
        play.reveal_vote(third, [50, 50])


def test_who_did_not_commit_does_not_reveal():
    """Nobody sees the others' scores first."""
    play = Play().until(Phase.EVALUATE)
    who = play.voters[0]
    play.vote(play.good, without=[who])
    with boa.reverts("task: no open commitment"):
        play.reveal_vote(who, [50, 50])


def test_the_last_reveal_ends_the_phase(play):
    """TALLY waits for nobody and has no deadline."""
    play.reveal(play.good)
    assert (play.phase, play.state.deadline) == (Phase.TALLY, 0)
    assert all(seat.duty == Duty.DONE for seat in play.view().seats)


def test_unused_lanes_do_not_matter():
    """What a voter writes beyond the last proposer's lane changes nothing."""
    play = Play().until(Phase.EVALUATE)
    packed = rounds.pack_scores([50, 50]) | (2**255 + 2**40)
    for who in play.voters:
        made = play.commitment(who, rounds.word(packed))
        play.task.commit_vote(1, made, sender=who)
    for who in play.voters:
        play.task.reveal_vote(1, packed, play.salt(who), sender=who)
    play.task.tally(2)
    assert [seat.weight for seat in play.view().seats[:2]] == [50, 50]
