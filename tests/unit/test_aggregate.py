import tracemalloc

import numpy as np
import pytest

from flockllm.adapter import Adapter, Update
from flockllm.aggregate import BLOCK, RULES, mean, median, score_weighted, trimmed_mean

SHAPES = {"t": (4,)}
CURRENT = Adapter(SHAPES, np.array([0, 10, -10, 2**31 - 1], np.int32))


def update(*values: int, shift: int = 0) -> Update:
    """An update of a task with a single tensor."""
    return Update(SHAPES, np.array([shift], np.int8), np.array(values, np.int16))


def moved(adapter: Adapter) -> list[int]:
    """How far from the current adapter."""
    return (adapter.values.astype(np.int64) - CURRENT.values).tolist()


def test_the_mean_rounds_halves_up():
    """5/2 is 3 and −5/2 is −2, on every machine."""
    assert moved(mean(CURRENT, [update(2, -3, 0, 0), update(3, -2, 0, 0)])) == [3, -2, 0, 0]


def test_the_mean_of_nothing_is_the_current_adapter():
    """A round without accepted updates changes nothing, whatever the rule."""
    assert all(rule(CURRENT, [], []) == CURRENT for rule in RULES.values())


def test_shifts_count():
    """Updates with different shifts meet as the integers they stand for."""
    updates = [update(1, 1, 1, 0, shift=4), update(16, 16, 16, 0)]
    assert all(moved(rule(CURRENT, updates, [1, 1])) == [16, 16, 16, 0] for rule in RULES.values())


def test_a_loud_update_counts_no_more_than_the_median():
    """Who multiplies an update by 1 000 gains nothing over sending it once."""
    quiet = [update(100, 0, 0, 0), update(0, 100, 0, 0)]

    loud = mean(CURRENT, [*quiet, update(0, 0, 25, 0, shift=12)])

    assert moved(loud) == moved(mean(CURRENT, [*quiet, update(0, 0, 100, 0)])) == [33, 33, 33, 0]


def test_weights_are_proportions():
    """Scores of 3 and 1 weigh as 300 and 100 do, and a weight of 0 is not heard."""
    pair = [update(100, 0, 0, 0), update(0, 100, 0, 0)]

    assert moved(score_weighted(CURRENT, pair, [3, 1])) == [75, 25, 0, 0]
    assert moved(score_weighted(CURRENT, pair, [300, 100])) == [75, 25, 0, 0]
    assert moved(score_weighted(CURRENT, pair, [5, 0])) == [100, 0, 0, 0]
    assert moved(score_weighted(CURRENT, pair, [0, 0])) == [50, 50, 0, 0]


def test_median_and_trimmed_mean_ignore_a_minority():
    """One liar in four moves no number beyond what the honest three said."""
    honest = [update(10, 20, 30, 0), update(11, 21, 31, 0), update(12, 22, 32, 0)]
    liar = update(-32_767, 32_767, -32_767, 0, shift=16)

    assert moved(median(CURRENT, [*honest, liar])) == [10, 21, 30, 0]
    assert moved(trimmed_mean(CURRENT, [*honest, liar])) == [11, 22, 31, 0]


def test_the_aggregate_stops_at_the_ends_of_the_range():
    """A number at the end of the range stays there and never wraps around."""
    assert mean(CURRENT, [update(0, 0, 0, 32_767, shift=16)]).values[3] == 2**31 - 1


@pytest.mark.parametrize("rule", RULES)
def test_memory_does_not_grow_with_the_number_of_updates(rule):
    """Beside the result there are blocks: less than it itself, for 32 updates of 16 MB."""
    shapes = {f"{i}": (BLOCK,) for i in range(32)}
    current = Adapter.zeros(shapes)
    values = np.random.default_rng(0).integers(-99, 99, 32 * BLOCK, dtype=np.int16)
    updates = [Update(shapes, np.zeros(32, np.int8), values)] * 32

    tracemalloc.start()
    try:
        RULES[rule](current, updates, [1] * 32)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(values) * 2
