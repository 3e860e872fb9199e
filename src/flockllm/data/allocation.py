"""Dealing a data set out to clients, evenly or as unevenly as real participants hold data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from flockllm.data.records import COLUMNS, Record, write_records
from flockllm.errors import InvalidData

if TYPE_CHECKING:
    from numpy.random import RandomState

Strategy = Literal["shards", "dirichlet", "iid", "by-column"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

TRIES = 10_000
"""Dirichlet draws before an α counts as one that never reaches the minimum (some 100 µs each)."""

SHARDS_PER_CLIENT = 2


@dataclass(frozen=True)
class Allocation:
    """A data set dealt out: every record is in `global_test` or with exactly one client."""

    global_training: list[Record]
    """What is not in the test set, sorted by category; the clients' records together."""

    global_test: list[Record]
    """As many of each category, for an evaluation that nobody trained on."""

    local: list[list[Record]]
    """One list for each client."""


def allocate(
    records: Sequence[Record],
    clients: int,
    strategy: Strategy = "shards",
    *,
    column: str = "category",
    alpha: float = 0.5,
    seed: int = 42,
    minimum: int = 40,
    test_per_category: int = 10,
) -> Allocation:
    """Sets a test set aside and deals the rest out; same arguments, same result, on every machine.

    Strategies:
        shards: sorted by category, cut into two equal shards per client, two random ones each
            (McMahan et al., 2017; the original's `diff_quantity` 0): equal amounts, few categories.
        dirichlet: each category split by a draw from Dirichlet(`alpha`) over the clients; who has
            its even share gets no more; drawn again until everyone has `minimum`, one
            at least (Li et al., 2022; the original's `diff_quantity` 1): amounts and mixes differ.
        iid: shuffled, equal amounts.
        by-column: all records with the same value of `column` go to one client, largest group first
            to who has fewest: for data that come with their natural owner.

    Raises:
        InvalidData: too few records, an `alpha` that does not reach `minimum`, a missing column.
    """
    import numpy as np  # here and not above: the command's `--help` stays instant

    if clients < 1:
        raise InvalidData(f"clients must be at least 1, got {clients}")
    if test_per_category < 0:
        raise InvalidData(f"test_per_category must not be negative, got {test_per_category}")
    rng = np.random.RandomState(seed)  # its streams are frozen; those of default_rng are not

    by_category = _grouped(records, "category")
    test: list[Record] = []
    training: list[Record] = []
    for category, group in by_category.items():
        if len(group) < test_per_category:
            raise InvalidData(
                f"category {category!r} has {len(group)} records, the test set takes "
                f"{test_per_category} of each; lower --test-per-category or merge categories"
            )
        chosen = set(rng.permutation(len(group))[:test_per_category].tolist())
        test += [record for i, record in enumerate(group) if i in chosen]
        training += [record for i, record in enumerate(group) if i not in chosen]

    match strategy:
        case "shards":
            local = _shards(training, clients, rng)
        case "dirichlet":
            local = _dirichlet(training, clients, alpha, max(1, minimum), rng)
        case "iid":
            local = _iid(training, clients, rng)
        case "by-column":
            local = _by_column(training, clients, column)
    return Allocation(training, test, local)


def _grouped(records: Iterable[Record], column: str) -> dict[str, list[Record]]:
    """Records by the text of a column, groups in sorted order, records in the order they came."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[str(record.column(column))].append(record)
    return dict(sorted(groups.items()))


def _shards(records: list[Record], clients: int, rng: RandomState) -> list[list[Record]]:
    count = SHARDS_PER_CLIENT * clients
    if len(records) < count:
        raise InvalidData(
            f"{len(records)} records for training cannot be cut into {count} shards for {clients} "
            "clients; take fewer clients or more records"
        )
    shards = _even_parts(records, count)
    order = rng.permutation(count).reshape(clients, SHARDS_PER_CLIENT)
    return [[record for shard in own for record in shards[shard]] for own in order]


def _iid(records: list[Record], clients: int, rng: RandomState) -> list[list[Record]]:
    if len(records) < clients:
        raise InvalidData(
            f"{len(records)} records for training are fewer than {clients} clients; "
            "take fewer clients or more records"
        )
    return _even_parts([records[i] for i in rng.permutation(len(records))], clients)


def _even_parts(records: list[Record], count: int) -> list[list[Record]]:
    """Cuts into `count` runs whose lengths differ by at most one, the longer ones first."""
    size, longer = divmod(len(records), count)
    starts = [i * size + min(i, longer) for i in range(count + 1)]
    return [records[a:b] for a, b in pairwise(starts)]


def _dirichlet(
    records: list[Record], clients: int, alpha: float, minimum: int, rng: RandomState
) -> list[list[Record]]:
    if not 1e-9 <= alpha <= 1e9:
        raise InvalidData(f"alpha must be between 1e-9 and 1e9, got {alpha}")
    if len(records) < minimum * clients:
        raise InvalidData(
            f"{len(records)} records for training cannot give {clients} clients {minimum} each; "
            "take fewer clients, more records or a lower --minimum"
        )
    groups = _grouped(records, "category")
    sizes = [len(group) for group in groups.values()]
    for _ in range(TRIES):
        amounts = _draw_amounts(sizes, clients, alpha, rng)
        if min(map(sum, zip(*amounts, strict=True))) >= minimum:
            break
    else:
        raise InvalidData(
            f"in {TRIES} draws with alpha {alpha:g} no one gave all {clients} clients {minimum} "
            "records; raise --alpha, lower --minimum or take fewer clients"
        )

    local: list[list[Record]] = [[] for _ in range(clients)]
    for group, shares in zip(groups.values(), amounts, strict=True):
        order = iter(rng.permutation(len(group)))
        for client, share in enumerate(shares):
            local[client] += [group[next(order)] for _ in range(share)]
    return local


def _draw_amounts(
    sizes: Sequence[int], clients: int, alpha: float, rng: RandomState
) -> list[list[int]]:
    """How many records of each category each client gets: one row per category, summing to it."""
    import numpy as np

    even = sum(sizes) / clients
    held = np.zeros(clients, int)
    amounts: list[list[int]] = []
    for size in sizes:
        # A Dirichlet draw is gamma draws over their sum. In logarithms, by Γ(α) = Γ(α+1) · U^(1/α)
        # (Marsaglia and Tsang, 2000), a tiny α does not make all of them zero.
        logs = np.log(rng.standard_gamma(alpha + 1, clients))
        logs += np.log(1 - rng.random_sample(clients)) / alpha
        logs[held >= even] = -np.inf
        p = np.exp(logs - logs.max())
        cuts = (np.cumsum(p)[:-1] / p.sum() * size).astype(int)
        row = np.diff(cuts, prepend=0, append=size)
        held += row
        amounts.append(row.tolist())
    return amounts


def _by_column(records: list[Record], clients: int, column: str) -> list[list[Record]]:
    if missing := sum(record.column(column) is None for record in records):
        known = sorted({*COLUMNS, *(name for record in records for name in record.others)})
        raise InvalidData(
            f"{missing} of {len(records)} records have no column {column!r}; "
            f"the columns are {', '.join(known)}"
        )
    groups = _grouped(records, column)
    if len(groups) < clients:
        raise InvalidData(
            f"column {column!r} has {len(groups)} values, fewer than {clients} clients; "
            "take fewer clients or another column"
        )
    local: list[list[Record]] = [[] for _ in range(clients)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(local, key=len).extend(group)
    return local


def write_allocation(allocation: Allocation, folder: Path) -> list[Path]:
    """Writes the original's files into `folder` and returns them; leaves other files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        folder / "global_training.json": allocation.global_training,
        folder / "global_test.json": allocation.global_test,
        **{
            folder / f"local_training_{client}.json": records
            for client, records in enumerate(allocation.local)
        },
    }
    for path, records in files.items():
        write_records(records, path)
    return list(files)
