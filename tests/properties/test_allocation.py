"""Whatever the data and the arguments: nothing lost, nothing doubled, the same again."""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from flockllm.data import STRATEGIES, Record, allocate, write_allocation
from flockllm.errors import InvalidData

data_sets = st.lists(st.sampled_from("abcde"), max_size=120).map(
    # Records repeat each other, as in real data.
    lambda categories: [
        Record(f"q{i % 50}", "r", category=category) for i, category in enumerate(categories)
    ]
)
arguments = st.fixed_dictionaries(
    {
        "clients": st.integers(1, 12),
        "strategy": st.sampled_from(STRATEGIES),
        "alpha": st.floats(1e-9, 1e9),
        "seed": st.integers(0, 2**32 - 1),
        "minimum": st.integers(0, 5),
        "test_per_category": st.integers(0, 3),
    }
)


def identities(records):
    """How often each object is there; equal records are different objects."""
    return Counter(map(id, records))


@given(data_sets, arguments)
@example(  # left one client without a record
    [Record(f"q{i}", "r", category="a") for i in range(2)],
    {
        "clients": 2,
        "strategy": "dirichlet",
        "alpha": 1.0,
        "seed": 2,
        "minimum": 0,
        "test_per_category": 0,
    },
)
def test_no_record_is_lost_or_doubled(records, arguments):
    """Every record is in the test set or with exactly one client; else it is an `InvalidData`."""
    try:
        allocation = allocate(records, **arguments)
    except InvalidData:
        return

    dealt = [record for own in allocation.local for record in own]
    assert len(allocation.local) == arguments["clients"]
    assert all(allocation.local)
    assert identities(dealt) == identities(allocation.global_training)
    assert identities(dealt + allocation.global_test) == identities(records)
    test = Counter(record.category for record in allocation.global_test)
    assert set(test.values()) <= {arguments["test_per_category"]}
    if arguments["strategy"] == "dirichlet":
        assert min(map(len, allocation.local)) >= arguments["minimum"]


@given(data_sets, arguments)
def test_the_same_arguments_give_the_same_bytes(records, arguments):
    """Two people who deal out the same data get the same files."""
    try:
        first, second = (allocate(records, **arguments) for _ in range(2))
    except InvalidData:
        return

    with tempfile.TemporaryDirectory() as folder:
        files = write_allocation(first, Path(folder))
        before = [path.read_bytes() for path in files]
        assert [path.read_bytes() for path in write_allocation(second, Path(folder))] == before
