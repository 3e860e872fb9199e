"""draw: who gets a seat."""

import boa
import pytest

from flockllm import rounds
from flockllm.rounds import Duty, Phase
from tests.contracts.play import POOL, STRANGER, TERMS, Play


def test_the_committee_is_what_the_rules_draw():
    """Seed and seats are recomputed from public facts."""
    play = Play(people=20)
    play.task.open_round()
    block = play.state.draw_block
    boa.env.time_travel(blocks=2, block_delta=1)
    play.task.draw(sender=STRANGER)

    block_hash = boa.env.evm.patch.prev_hashes[0]  # of the block before this one
    chain_id = boa.env.evm.patch.chain_id
    seed = rounds.draw_seed(chain_id, play.task.address, 1, block_hash, 0)
    result = play.result(1)
    assert (result.seed, result.draw_block) == (seed, block)
    drawn = rounds.draw_seats(seed, 20, TERMS.committee)
    assert [seat.who for seat in play.view().seats] == [play.people[i] for i in drawn]
    assert [seat.voter for seat in play.view().seats] == [False] * 2 + [True] * 3
    assert all(seat.duty == Duty.DRAWN for seat in play.view().seats)


def test_a_draw_takes_part_of_the_pool_and_starts_training():
    """Budget aside, deadline set, seats counted."""
    play = Play()
    play.open()
    state = play.state
    assert (state.phase, state.pool, state.allotted) == (Phase.TRAIN, POOL * 3 // 4, POOL // 4)
    assert state.deadline == state.since + TERMS.train_seconds
    for who in play.people:
        assert (play.view(who).me.unsettled, play.view(who).me.last_round) == (1, 1)


def test_the_draw_block_must_be_mined():
    """In its own block its hash is not known."""
    play = Play()
    play.task.open_round()
    boa.env.time_travel(blocks=1, block_delta=1)
    with boa.reverts("task: draw block not mined"):
        play.task.draw()
    boa.env.time_travel(blocks=1, block_delta=1)
    play.task.draw()


def test_the_draw_block_must_be_readable():
    """The 256th block after it still knows its hash, the next does not."""
    play = Play()
    play.task.open_round()
    boa.env.time_travel(blocks=258, block_delta=1)
    with boa.reverts("task: draw block forgotten"):
        play.task.draw()
    boa.env.evm.patch.block_number -= 1
    with boa.reverts("task: too early"):
        play.task.advance()
    play.task.draw()
    assert play.result(1).seed != bytes(32)


def test_a_draw_does_not_shuffle_the_list():
    """Places stay: only joining and leaving move people."""
    play = Play(people=12)
    play.open()
    assert [play.task.active_member(i) for i in range(12)] == play.people


def test_salts_of_a_round_seed_the_next():
    """All revealed salts, updates' and votes', and only since the last draw."""
    play = Play().until(Phase.IDLE)
    entropy = 0
    for seat in play.seats(1):
        entropy ^= int.from_bytes(play.salt(seat.who, 1))
    assert play.task.entropy() == entropy != 0

    play.open()
    block_hash = boa.env.evm.patch.prev_hashes[0]
    chain_id = boa.env.evm.patch.chain_id
    seed = rounds.draw_seed(chain_id, play.task.address, 2, block_hash, entropy)
    assert play.result(2).seed == seed
    assert play.task.entropy() == 0


def test_every_phase_but_draw_refuses():
    """A committee is drawn once."""
    play = Play()
    with boa.reverts("task: wrong phase"):
        play.task.draw()
    play.open()
    with boa.reverts("task: wrong phase"):
        play.task.draw()


@pytest.mark.parametrize("people", [TERMS.committee, 100])
def test_everyone_has_the_same_chance(people):
    """Over 60 draws nobody is always or never a proposer out of proportion."""
    play = Play(people=people)
    seats = dict.fromkeys(play.people, 0)
    for i in range(60):
        with boa.env.anchor():
            boa.env.evm.patch.prev_hashes = [bytes([i, 7]) * 16] * 256
            play.open()
            for who in play.proposers:
                seats[who] += 1
    assert sum(seats.values()) == 120
    assert max(seats.values()) <= (40 if people == TERMS.committee else 7)
    assert (min(seats.values()) >= 10) == (people == TERMS.committee)
