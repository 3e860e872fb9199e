import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flockllm import aggregate
from flockllm.adapter import Adapter, Update
from flockllm.aggregate import RULES

SHAPES = {"a.lora_A.weight": (2, 5), "a.lora_B.weight": (5, 2), "b.lora_A.weight": (2, 3)}
TENSORS = sorted(SHAPES)


@st.composite
def rounds(draw, most=9):
    """A current adapter, updates of any size and shift, and weights."""
    count = draw(st.integers(1, most))
    near_end = draw(st.sampled_from([0, 2**31 - 2**20]))
    current = Adapter(SHAPES, ints(draw, 26, 2**20).astype(np.int32) + np.int32(near_end))
    updates = []
    for _ in range(count):
        values = ints(draw, 26, draw(st.sampled_from([1, 300, 32_767]))).astype(np.int16)
        shifts = ints(draw, 3, 0, draw(st.sampled_from([0, 3, 16]))).astype(np.int8)
        updates.append(Update(SHAPES, shifts, values))
    return current, updates, draw(st.lists(st.integers(0, 10_000), min_size=count, max_size=count))


def ints(draw, count, low, high=None):
    """`count` whole numbers in ±low, or in low..high."""
    low, high = (-low, low) if high is None else (low, high)
    return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))


def exact(name, current, updates, weights):
    """Every rule again, number by number, in Python's unbounded integers, from its docstring."""
    deltas = [[int(d) for t in u.deltas().values() for d in t.ravel()] for u in updates]
    n = len(updates)
    if name == "mean" or not any(weights):
        weights = [1] * n
    norms = [math.isqrt(sum(d * d for d in delta)) for delta in deltas]
    m, top = sorted(norms)[(n - 1) // 2], max(weights)
    c = [
        2**16 * w * min(m, N) // (N * top) if N else 0 for w, N in zip(weights, norms, strict=True)
    ]
    moved = []
    for i, start in enumerate(current.values.tolist()):
        column = sorted(delta[i] for delta in deltas)
        if name == "median":
            step = column[(n - 1) // 2]
        elif name == "trimmed_mean":
            kept = column[n // 4 : n - n // 4]
            step = (2 * sum(kept) + len(kept)) // (2 * len(kept))
        else:
            total = sum(2**16 * w // top for w in weights)
            weighted = sum(ci * delta[i] for ci, delta in zip(c, deltas, strict=True))
            step = (2 * weighted + total) // (2 * total)
        moved.append(max(-(2**31), min(2**31 - 1, start + step)))
    return moved


@pytest.mark.parametrize("rule", RULES)
@given(round_=rounds())
def test_rules_are_their_formulas(rule, round_):
    """A second implementation, written from the documentation, gets the same numbers."""
    assert RULES[rule](*round_).values.tolist() == exact(rule, *round_)


@pytest.mark.parametrize("rule", RULES)
@given(
    round_=rounds(),
    order=st.randoms(use_true_random=False),
    block=st.integers(1, 30),
    piece=st.integers(1, 30),
    rows=st.integers(1, 16),
    threads=st.integers(1, 4),
)
def test_nothing_but_the_updates_matters(rule, round_, order, block, piece, rows, threads):
    """Order, block sizes and threads leave the bytes of the aggregate alone."""
    current, updates, weights = round_
    expected = RULES[rule](*round_).to_bytes()
    pairs = list(zip(updates, weights, strict=True))
    order.shuffle(pairs)

    with patch.multiple(aggregate, BLOCK=block, PIECE=piece, ROWS=rows, THREADS=threads):
        again = RULES[rule](current, *zip(*pairs, strict=True))

    assert again.to_bytes() == expected


@pytest.mark.parametrize("rule", RULES)
@given(round_=rounds(most=1))
def test_one_update_alone_is_applied_as_it_is(rule, round_):
    """Nothing to average with, nothing to clip to: current plus update."""
    current, (update,), weights = round_
    assert RULES[rule](current, [update], weights) == current + update
