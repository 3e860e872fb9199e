"""Tokens that do not behave: refused, or harmless to everyone but their own holders."""

from dataclasses import astuple
from pathlib import Path

import boa
import pytest

from flockllm.rounds import Phase
from tests.contracts.play import (
    CREATOR,
    INITIAL,
    POOL,
    SPEC,
    STRANGER,
    TERMS,
    Play,
    factory,
    plain_token,
    source,
)

TOKENS = Path(__file__).parent / "tokens"


@pytest.fixture
def hostile():
    """A token that does what a test tells it to."""
    return boa.load(str(TOKENS / "Hostile.vy"))


def test_a_token_that_returns_false_is_refused(hostile):
    """Whatever it calls failure, the task calls failure."""
    play = Play(token=hostile, people=1)
    (who,) = play.people
    play.task.exit(sender=who)
    hostile.refuse(True)
    for name, args in (
        ("register", (TERMS.bond,)),
        ("fund", (1,)),
        ("claim", ()),
    ):
        with boa.reverts("task: token refused"):
            getattr(play.task, name)(*args, sender=STRANGER if args else who)
    assert play.claimable(who) == TERMS.bond
    with boa.reverts("factory: token refused"):
        Play(token=hostile)


def test_a_token_that_returns_nothing_is_taken():
    """Old tokens revert instead of answering; a full round works with one."""
    play = Play(token=boa.load(str(TOKENS / "Mute.vy"))).until(Phase.IDLE)
    play.settle(1)
    play.assert_money_adds_up()
    who = play.people[0]
    play.task.claim(sender=who)
    assert play.token.balanceOf(who) > 0


@pytest.mark.parametrize(("fee", "bonus"), [(1, 0), (0, 1)])
def test_a_token_that_delivers_another_amount_is_refused(hostile, fee, bonus):
    """A fee would make the last claim fail, a bonus would belong to nobody."""
    play = Play(token=hostile, people=1)
    hostile.take(fee, bonus)
    for who in (STRANGER, play.people[0]):
        hostile.mint(who, TERMS.bond)
    with boa.reverts("task: token took a fee"):
        play.task.register(TERMS.bond, sender=STRANGER)
    with boa.reverts("task: token took a fee"):
        play.task.top_up(1, sender=play.people[0])
    with boa.reverts("task: token took a fee"):
        play.task.fund(1, sender=STRANGER)
    with boa.reverts():
        Play(token=hostile)
    assert not play.view(STRANGER).me.registered


def test_a_blacklisted_participant_harms_nobody_else(hostile):
    """Its own claim waits; rounds, settlements and the claims of others go on."""
    play = Play(token=hostile).until(Phase.TRAIN)
    banned, other = play.people[:2]
    hostile.ban(banned, True)
    play.train()
    play.publish()
    play.vote(play.good)
    play.reveal(play.good)
    play.task.tally(2)
    play.attest()
    play.settle(1)
    play.task.claim(sender=other)
    with boa.reverts("token: banned"):
        play.task.claim(sender=banned)
    assert play.claimable(banned) > 0
    hostile.ban(banned, False)
    play.task.claim(sender=banned)
    assert hostile.balanceOf(banned) > 0
    play.assert_money_adds_up()


CALLS = {
    "claim": (),
    "exit": (),
    "reactivate": (),
    "open_round": (),
    "draw": (),
    "advance": (),
    "cancel": (),
    "withdraw_rest": (),
    "register": (TERMS.bond,),
    "top_up": (1,),
    "fund": (1,),
    "tally": (1,),
    "settle": (1, STRANGER),
    "commit_update": (1, bytes(32)),
    "abstain": (1,),
    "publish_update": (1, bytes(32), 1, bytes(32)),
    "commit_vote": (1, bytes(32)),
    "reveal_vote": (1, 0, bytes(32)),
    "attest": (1, bytes(32)),
    "look": (STRANGER,),
    "participants": (STRANGER,),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_call_comes_back_in(hostile, name):
    """In the middle of a transfer the task answers nothing, not even a question."""
    play = Play(token=hostile, people=1)
    (who,) = play.people
    payload = getattr(play.task, name).prepare_calldata(*CALLS[name])
    play.task.exit(sender=who)
    with boa.env.anchor():  # the call back itself would work, were it not for the lock
        if name in ("look", "participants"):
            boa.env.raw_call(play.task.address, sender=hostile.address, data=payload)
    hostile.call_back(play.task, payload)
    play.task.claim(sender=who)
    assert not hostile.reentered()
    play.assert_money_adds_up()


def test_a_second_claim_from_within_the_first_pays_nothing(hostile):
    """The token itself is a claimant and calls back: it still gets its due once."""
    play = Play(token=hostile, people=1)
    hostile.mint(hostile, TERMS.bond)
    play.task.register(TERMS.bond, sender=hostile.address)
    play.task.exit(sender=hostile.address)
    hostile.call_back(play.task, play.task.claim.prepare_calldata())
    play.task.claim(sender=hostile.address)
    assert not hostile.reentered()
    assert hostile.balanceOf(hostile) == TERMS.bond
    play.assert_money_adds_up()


def test_the_factory_is_not_reentered(hostile):
    """No task is made inside the making of another."""
    arguments = (astuple(TERMS), hostile, SPEC, INITIAL, 0)
    hostile.call_back(factory(), factory().tasks.prepare_calldata(0))
    hostile.mint(CREATOR, POOL)
    before = factory().task_count()
    factory().create_task(*arguments[:4], POOL, sender=CREATOR)
    assert factory().task_count() == before + 1
    assert not hostile.reentered()


def test_a_gift_belongs_to_nobody():
    """Tokens sent past the entry points change no balance within the task."""
    play = Play()
    plain_token().mint(play.task, 77)
    play.until(Phase.IDLE)
    play.settle(1)
    for who in play.people:
        play.task.claim(sender=who)
    held = sum(play.stake(who) + play.claimable(who) for who in [*play.people, CREATOR])
    assert play.token.balanceOf(play.task) == 77 + held + play.task.pool() + play.task.allotted()


def test_the_test_token_is_a_plain_erc20():
    """Only its minter makes tokens; nobody spends what is not there or not approved."""
    token = source("TestToken").deploy("Test", "TST", sender=CREATOR)
    assert (token.name(), token.symbol(), token.decimals()) == ("Test", "TST", 18)
    with boa.reverts("token: not the minter"):
        token.mint(STRANGER, 1, sender=STRANGER)
    token.mint(STRANGER, 10, sender=CREATOR)
    token.transfer(CREATOR, 4, sender=STRANGER)
    assert (token.balanceOf(STRANGER), token.balanceOf(CREATOR)) == (6, 4)
    with boa.reverts("token: too little"):
        token.transfer(CREATOR, 7, sender=STRANGER)
    with boa.reverts("token: not approved"):
        token.transferFrom(STRANGER, CREATOR, 1, sender=CREATOR)
    token.approve(CREATOR, 5, sender=STRANGER)
    token.transferFrom(STRANGER, CREATOR, 2, sender=CREATOR)
    assert token.allowance(STRANGER, CREATOR) == 3
    token.approve(CREATOR, 2**256 - 1, sender=STRANGER)
    token.transferFrom(STRANGER, CREATOR, 4, sender=CREATOR)
    assert token.allowance(STRANGER, CREATOR) == 2**256 - 1
    assert (token.balanceOf(CREATOR), token.totalSupply()) == (10, 10)
