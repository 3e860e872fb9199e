"""Integer rules that make one adapter of many updates.

Every rule gives the same bytes for every order of the updates, block size, number of threads and
machine. Updates are looked at block by block: memory is the result and a block of each update,
however large they are.

`mean` and `score_weighted` clip first, so that no update weighs more than its neighbours: one
whose L2 norm N (see `Update.norm`) exceeds m, the lower median of all norms, counts as scaled by
m / N. Weights and clipping are one integer coefficient for each update, so that there is a single
rounding:

    cᵢ = ⌊ 2¹⁶ · wᵢ · min(m, Nᵢ) / (Nᵢ · max w) ⌋        D = Σ ⌊ 2¹⁶ · wᵢ / max w ⌋
    θ' = sat32(θ + ⌊ (2 · Σ cᵢ · deltaᵢ + D) / 2D ⌋)      (deltas: whole numbers, sums exact)
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter import Adapter, Update, blocks, saturate

T = TypeVar("T")
R = TypeVar("R")

Rule = Callable[[Adapter, Sequence[Update], Sequence[int]], Adapter]
"""(current, accepted updates, the tally's weight of each) → the next global adapter."""

BLOCK = 1 << 18
"""Numbers that a thread takes on at a time."""
Rows = Sequence[NDArray[np.int16]]
"""The same piece of each update."""

Combine = Callable[[Rows, Sequence[int], NDArray[np.int64]], None]
"""(rows, shift of each) → how far to move, written into the last argument."""

THREADS = os.cpu_count() or 1
PIECE = 1 << 15
"""Numbers of one update that are summed at a time."""
ROWS = 16
"""Updates that are summed at a time; the two together fill a core's cache."""
STRIP = 512
"""Numbers that BLAS sums at a time."""


def mean(current: Adapter, updates: Sequence[Update], weights: Sequence[int] = ()) -> Adapter:
    """Federated averaging with equal weights (McMahan et al., 2017), clipped to the median norm."""
    return score_weighted(current, updates, [1] * len(updates))


def score_weighted(current: Adapter, updates: Sequence[Update], weights: Sequence[int]) -> Adapter:
    """The clipped mean by the weights that the tally pays by; equal ones where all are 0."""
    if not updates:
        return current
    if not any(weights):
        weights = [1] * len(updates)
    norms = _each(lambda update: update.norm, updates)
    median_norm = sorted(norms)[(len(norms) - 1) // 2]
    top = max(weights)
    coefficients = [
        (w * min(median_norm, norm) << 16) // (norm * top) if norm else 0
        for w, norm in zip(weights, norms, strict=True)
    ]
    total = sum((w << 16) // top for w in weights)

    def worker() -> Combine:
        weighted_sum = _weighted_sum(len(updates))

        def combine(rows: Rows, shifts: Sequence[int], out: NDArray[np.int64]) -> None:
            scales = [c << s for c, s in zip(coefficients, shifts, strict=True)]
            weighted_sum(rows, np.array(scales, np.float64), out)
            _rdiv(out, total)

        return combine

    return _blockwise(current, updates, worker, PIECE)


def median(current: Adapter, updates: Sequence[Update], weights: Sequence[int] = ()) -> Adapter:
    """The lower median of each number: holds against a minority of liars (Yin et al., 2018)."""

    def combine(rows: Rows, shifts: Sequence[int], out: NDArray[np.int64]) -> None:
        out[:] = _sorted(rows, shifts)[:, (len(rows) - 1) // 2]

    return _blockwise(current, updates, lambda: combine, _narrow(len(updates)))


def trimmed_mean(
    current: Adapter, updates: Sequence[Update], weights: Sequence[int] = ()
) -> Adapter:
    """The mean of each number without its ⌊n/4⌋ smallest and largest (Yin et al., 2018)."""

    def combine(rows: Rows, shifts: Sequence[int], out: NDArray[np.int64]) -> None:
        trim = len(rows) // 4
        kept = _sorted(rows, shifts)[:, trim : len(rows) - trim]
        kept.sum(axis=1, dtype=np.int64, out=out)
        _rdiv(out, len(rows) - 2 * trim)

    return _blockwise(current, updates, lambda: combine, _narrow(len(updates)))


RULES: dict[str, Rule] = {
    "mean": mean,
    "score_weighted": score_weighted,
    "median": median,
    "trimmed_mean": trimmed_mean,
}
"""The names a task definition may use."""


def _blockwise(
    current: Adapter, updates: Sequence[Update], worker: Callable[[], Combine], piece: int
) -> Adapter:
    """Moves the current adapter, `piece` numbers at a time, by what each thread's worker says."""
    if not updates:
        return current
    moved = np.empty_like(current.values)
    todo = list(blocks(current.shapes, BLOCK))

    def work(thread: int) -> None:
        combine, step = worker(), np.empty(piece, np.int64)
        for block, inside in todo[thread::THREADS]:
            rows = [update.values[block] for update in updates]  # decoded here, if need be
            for tensor, part in inside:
                shifts = [int(update.shifts[tensor]) for update in updates]
                for start in range(part.start, part.stop, piece):
                    span = slice(start, min(start + piece, part.stop))
                    here = slice(span.start - block.start, span.stop - block.start)
                    out = step[: span.stop - span.start]
                    combine([row[here] for row in rows], shifts, out)
                    out += current.values[span]
                    moved[span] = saturate(out)

    _each(work, range(THREADS))
    return Adapter(current.shapes, moved)


def _weighted_sum(
    count: int,
) -> Callable[[Rows, NDArray[np.float64], NDArray[np.int64]], None]:
    """A function that writes Σ scale · row, for up to `count` rows, in memory of its own.

    A scale is ≤ 2¹⁶⁺ˢ where the row's values are < 2³¹⁻ˢ, so that a sum over `ROWS` rows is made
    of whole numbers < 2⁵³ whatever its order: floating point is exact, and BLAS may be used. It
    gets strips too small to start threads of its own, which would fight ours for the cores.
    """
    strips = -(-PIECE // STRIP)
    wide = np.zeros((min(ROWS, count), strips * STRIP))
    by_strip = wide.reshape(len(wide), strips, STRIP).swapaxes(0, 1)  # (strips, rows, STRIP)
    sums = np.empty((strips, STRIP))

    def weighted_sum(rows: Rows, scales: NDArray[np.float64], out: NDArray[np.int64]) -> None:
        used = -(-len(out) // STRIP)
        out[:] = 0
        for first in range(0, len(rows), ROWS):
            batch = rows[first : first + ROWS]
            for into, row in zip(wide, batch, strict=False):
                into[: len(out)] = row
            np.matmul(scales[first : first + ROWS], by_strip[:used, : len(batch)], out=sums[:used])
            out += sums.reshape(-1)[: len(out)].astype(np.int64)

    return weighted_sum


def _sorted(rows: Rows, shifts: Sequence[int]) -> NDArray[np.int32]:
    """What the updates say about each number, in order: (numbers, updates)."""
    deltas = np.empty((len(rows[0]), len(rows)), np.int32)
    for column, row, shift in zip(deltas.T, rows, shifts, strict=True):
        np.left_shift(row, shift, out=column, dtype=np.int32)
    deltas.sort(axis=1)
    return deltas


def _narrow(count: int) -> int:
    """How many numbers of `count` updates fit where `PIECE` numbers of `ROWS` do."""
    return max(1, PIECE * ROWS // max(ROWS, count))


def _rdiv(a: NDArray[np.int64], b: int) -> None:
    """a = ⌊(2a + b) / 2b⌋, the nearest whole number to a / b, halves up."""
    a += b // 2
    a //= b


def _each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(work, items))
