"""publish_update: a proposer opens its commitment."""

import boa
import pytest

from flockllm import rounds
from flockllm.rounds import Duty, Phase
from tests.contracts.play import STRANGER, TERMS, Play


@pytest.fixture
def play():
    """A round in PUBLISH."""
    return Play().until(Phase.PUBLISH)


def publish(play: Play, who: str, **change):
    """Publishes with something changed."""
    given = {"number": 1, "digest": play.update(who), "size": 10, "salt": play.salt(who)} | change
    play.task.publish_update(*given.values(), sender=who)


def test_a_published_update_has_digest_and_size(play):
    """Together they name the content."""
    who = play.proposers[0]
    publish(play, who, size=2**48 - 1)
    seat = play.view().seats[0]
    assert (seat.duty, seat.digest, seat.size) == (Duty.DONE, play.update(who), 2**48 - 1)


def test_the_opening_must_fit(play):
    """Another digest, another salt, somebody else's opening: refused."""
    who, other = play.proposers
    for change in (
        {"digest": play.update(other)},
        {"salt": play.salt(other)},
        {"digest": play.update(other), "salt": play.salt(other)},
    ):
        with boa.reverts("task: wrong opening"):
            publish(play, who, **change)


@pytest.mark.parametrize("foreign", ["chain", "task", "round", "sender"])
def test_commitments_made_elsewhere_do_not_open(foreign):
    """A commitment replayed from another chain, task, round or sender is worth nothing."""
    play = Play().until(Phase.TRAIN)
    who, other = play.proposers
    words = {
        "chain": boa.env.evm.patch.chain_id,
        "task": play.task.address,
        "round": 1,
        "sender": who,
    }
    words[foreign] = {"chain": 5, "task": STRANGER, "round": 2, "sender": other}[foreign]
    digest, salt = play.update(who), play.salt(who)
    play.task.commit_update(1, rounds.commitment(*words.values(), digest, salt), sender=who)
    play.commit_update(other)
    with boa.reverts("task: wrong opening"):
        publish(play, who)


def test_a_digest_counts_once_in_a_task():
    """Neither in the same round nor later: nobody is paid for a copy."""
    play = Play().until(Phase.TRAIN)
    first, second = play.proposers
    play.commit_update(first)
    copied, salt = play.update(first), play.salt(second)
    play.task.commit_update(1, play.commitment(second, copied), sender=second)
    play.publish_update(first)
    with boa.reverts("task: digest seen before"):
        publish(play, second, digest=copied, salt=salt)
    play.expire(Phase.PUBLISH)
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()

    play.open()
    who = play.proposers[0]
    play.task.commit_update(2, play.commitment(who, copied), sender=who)
    play.expire(Phase.TRAIN)
    with boa.reverts("task: digest seen before"):
        publish(play, who, number=2, digest=copied)


def test_refusals(play):
    """Nothing, too large, not a proposer, wrong round, twice."""
    who, other = play.proposers
    with boa.reverts("task: no digest"):
        publish(play, who, digest=bytes(32))
    with boa.reverts("task: size too large"):
        publish(play, who, size=2**48)
    with boa.reverts("task: not a proposer"):
        publish(play, play.voters[0])
    with boa.reverts("task: wrong round"):
        publish(play, who, number=2)
    publish(play, who)
    with boa.reverts("task: no open commitment"):
        publish(play, who)
    boa.env.time_travel(seconds=TERMS.publish_seconds)
    with boa.reverts("task: late"):
        publish(play, other)


def test_who_did_not_commit_has_nothing_to_open():
    """A missed TRAIN is not made up in PUBLISH."""
    play = Play().until(Phase.TRAIN)
    who = play.proposers[0]
    play.train(without=[who])
    with boa.reverts("task: no open commitment"):
        publish(play, who)


def test_the_last_publication_ends_the_phase(play):
    """Also if not everyone had committed."""
    play.publish()
    state = play.state
    assert (state.phase, state.deadline) == (Phase.EVALUATE, state.since + TERMS.evaluate_seconds)
    with boa.reverts("task: wrong phase"):
        publish(play, play.proposers[0])
