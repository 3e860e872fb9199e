"""create_task: tasks from one code, with terms that make sense."""

from dataclasses import astuple, fields

import boa
import pytest

from tests.contracts.play import (
    CREATOR,
    INITIAL,
    POOL,
    SPEC,
    STRANGER,
    TERMS,
    factory,
    plain_token,
    source,
)

LIMITS = {
    "rounds": (1, 10_000),
    "proposers": (1, 16),
    "voters": (1, 63),
    "bond": (1, 2**128 - 1),
    "proposer_share": (0, 10_000),
    "accept_margin": (0, 1_000),
    "strong_margin": (2, 1_000),  # between this task's accept_margin and score_cap
    "score_cap": (100, 10_000),
    "slash_no_show": (0, 10_000),
    "slash_silent": (0, 10_000),
    "slash_invalid": (0, 10_000),
    "slash_harmful": (0, 10_000),
    "slash_contradiction": (0, 10_000),
    "slash_contradictions": (0, 10_000),
    "slash_attestation": (0, 10_000),
    "keeper_share": (0, 10_000),
    "train_seconds": (1, 2**32 - 1),
    "publish_seconds": (1, 2**32 - 1),
    "evaluate_seconds": (1, 2**32 - 1),
    "reveal_seconds": (1, 2**32 - 1),
    "attest_seconds": (1, 2**32 - 1),
    "idle_timeout": (1, 2**32 - 1),
}


def create(pool: int = 0, **change: int):
    """Makes a task with some terms changed."""
    if change.get("accept_margin") == 1_000:
        change["strong_margin"] = change["score_cap"] = 1_001
    values = dict(zip((f.name for f in fields(TERMS)), astuple(TERMS), strict=True)) | change
    address = factory().create_task(
        tuple(values.values()), plain_token(), SPEC, INITIAL, pool, sender=CREATOR
    )
    return source("Task").at(address)


def test_a_task_knows_what_it_was_made_with():
    """Terms, token, creator, digests; idle before round 1."""
    task = create()
    assert tuple(task.terms()) == astuple(TERMS)
    assert task.token() == plain_token().address
    assert task.creator() == CREATOR
    assert (task.spec_digest(), task.initial_adapter()) == (SPEC, INITIAL)
    state, seats, _ = task.look(STRANGER)
    assert (state[0], state[1], state[2]) == (1, 0, boa.env.timestamp)
    assert state[5] == INITIAL
    assert seats == []


def test_tasks_are_listed_in_the_order_of_creation():
    """With an event for each."""
    before = factory().task_count()
    made = [create().address for _ in range(2)]
    event = factory().get_logs()[-1]
    assert (event.task, event.creator, event.spec_digest) == (made[1], CREATOR, SPEC)
    assert event.index == before + 1
    assert factory().task_count() == before + 2
    assert [factory().tasks(before + i) for i in range(2)] == made


def test_the_first_pool_comes_from_the_creator():
    """Through the factory, which keeps nothing."""
    plain_token().mint(CREATOR, POOL)
    plain_token().approve(factory(), POOL, sender=CREATOR)
    task = create(pool=POOL)
    assert task.pool() == plain_token().balanceOf(task) == POOL
    assert plain_token().balanceOf(factory()) == plain_token().balanceOf(CREATOR) == 0


def test_a_pool_needs_an_approval():
    """Without it there is no task either."""
    before = factory().task_count()
    with boa.reverts("token: not approved"):
        create(pool=POOL)
    assert factory().task_count() == before


@pytest.mark.parametrize("name", LIMITS)
def test_each_term_has_limits(name):
    """The limits themselves are allowed; one further is refused, with the term's name."""
    low, high = LIMITS[name]
    create(**{name: low})
    create(**{name: high})
    for beyond in (low - 1, high + 1):
        if beyond >= 0:
            above = name == "strong_margin" and beyond > high  # then it is the cap that is too low
            with boa.reverts(f"terms: {'score_cap' if above else name}"):
                create(**{name: beyond})


def test_margins_are_in_order():
    """accept_margin < strong_margin ≤ score_cap."""
    with boa.reverts("terms: strong_margin"):
        create(accept_margin=100)
    create(accept_margin=99)


def test_a_task_needs_a_token_and_an_adapter():
    """An address without code would swallow bonds."""
    with boa.reverts("factory: token is no contract"):
        factory().create_task(astuple(TERMS), STRANGER, SPEC, INITIAL, 0, sender=CREATOR)
    with boa.reverts("factory: no adapter"):
        factory().create_task(astuple(TERMS), plain_token(), SPEC, bytes(32), 0, sender=CREATOR)


def test_a_factory_needs_a_blueprint():
    """Any other code is refused when it is deployed."""
    with boa.reverts("factory: no blueprint"):
        source("TaskFactory").deploy(plain_token())
