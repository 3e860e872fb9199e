"""Dealing data out: the original's semantics, its files, and errors that say what to change."""

import json

import pytest
from click.testing import CliRunner

from flockllm.cli.data import data
from flockllm.data import Record, allocate, draw_distribution, read_records, write_allocation
from flockllm.errors import InvalidData

CATEGORIES = {"brainstorming": 90, "closed_qa": 130, "open_qa": 300, "summarization": 60}
RECORDS = [
    Record(f"instruction {category} {i}", "response", category=category, others={"site": i % 5})
    for category, count in CATEGORIES.items()
    for i in range(count)
]


def mix(records):
    """The categories of records."""
    return {record.category for record in records}


def test_ten_of_each_category_go_to_the_global_test():
    """The test set weighs every category the same, however rare it is in the data."""
    test = [record.category for record in allocate(RECORDS, 4).global_test]

    assert test == [category for category in sorted(CATEGORIES) for _ in range(10)]


def test_shards_are_equal_amounts_of_few_categories():
    """`diff_quantity` 0 of the original: two of 2 × clients equal runs of the sorted data each."""
    allocation = allocate(RECORDS, 5, "shards")
    sizes = [len(own) for own in allocation.local]

    assert max(sizes) - min(sizes) <= 2
    assert allocation.global_training == sorted(
        allocation.global_training, key=lambda r: r.category
    )
    size = len(allocation.global_training) // 10
    for own in allocation.local:
        starts = [allocation.global_training.index(half[0]) for half in (own[:size], own[size:])]
        assert len(starts) == 2
        assert own[:size] == allocation.global_training[starts[0] : starts[0] + size]


def test_dirichlet_amounts_differ_and_reach_the_minimum():
    """`diff_quantity` 1 of the original: uneven, but everybody has something to train on."""
    sizes = sorted(len(own) for own in allocate(RECORDS, 4, "dirichlet", minimum=40).local)

    assert sizes[0] >= 40
    assert sizes[-1] > 1.3 * sizes[0]


def test_a_client_with_its_even_share_gets_no_more():
    """The cap of the original: only the category that passes the even share may overshoot it."""
    for seed in range(20):
        allocation = allocate(RECORDS, 4, "dirichlet", seed=seed, minimum=1)
        even = len(allocation.global_training) / 4
        for own in allocation.local:
            before_last = [r for r in own if r.category != max(mix(own))]
            assert len(before_last) < even


def test_a_small_alpha_is_more_uneven_than_a_large_one():
    """α means what it means in the literature: towards 0 one category each, towards ∞ alike."""

    def categories(alpha):
        local = allocate(RECORDS, 4, "dirichlet", alpha=alpha, minimum=1).local
        return sum(len(mix(own)) for own in local)

    assert categories(0.02) < categories(100) == 16


def test_by_column_keeps_every_group_with_one_client():
    """Data that come with their owners stay with them."""
    local = allocate(RECORDS, 3, "by-column", column="site").local
    sites = [{record.others["site"] for record in own} for own in local]

    assert sorted(site for own in sites for site in own) == [0, 1, 2, 3, 4]
    assert all(sites)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": 0}, "at least 1"),
        ({"clients": 300}, r"540 records for training cannot be cut into 600 shards"),
        ({"clients": 541, "strategy": "iid"}, "fewer than 541 clients"),
        ({"clients": 14, "strategy": "dirichlet"}, "cannot give 14 clients 40 each"),
        ({"clients": 4, "strategy": "dirichlet", "alpha": 0.0}, "alpha must be between"),
        ({"clients": 4, "strategy": "dirichlet", "alpha": float("nan")}, "alpha must be"),
        ({"clients": 12, "strategy": "dirichlet", "alpha": 0.001}, "raise --alpha"),
        ({"clients": 4, "test_per_category": 61}, "'summarization' has 60 records"),
        ({"clients": 4, "test_per_category": -1}, "must not be negative"),
        ({"clients": 6, "strategy": "by-column", "column": "site"}, "has 5 values, fewer than 6"),
        ({"clients": 2, "strategy": "by-column", "column": "town"}, "no column 'town'.*site"),
    ],
)
def test_what_cannot_be_dealt_out_says_what_to_change(arguments, message):
    """An impossible wish ends, soon, with the number to change."""
    with pytest.raises(InvalidData, match=message):
        allocate(RECORDS, **arguments)


def test_the_files_are_the_originals(tmp_path):
    """Whatever reads the original's folder reads ours: names, JSON lists, the four keys first."""
    allocation = allocate(RECORDS, 2)
    write_allocation(allocation, tmp_path / "data" / "2")

    names = ["global_test", "global_training", "local_training_0", "local_training_1"]
    paths = sorted((tmp_path / "data" / "2").iterdir())
    assert [path.name for path in paths] == [f"{name}.json" for name in names]
    rows = json.loads(paths[3].read_text(encoding="utf-8"))
    assert list(rows[0])[:4] == ["instruction", "context", "response", "category"]
    assert read_records(paths[3]) == allocation.local[1]


@pytest.mark.parametrize("clients", [1, 4, 120])
def test_a_chart_of_any_size_is_drawn(tmp_path, clients):
    """One client or very many, few categories or more than there are colours."""
    records = [Record("i", "r", category=str(i % 12 or "")) for i in range(480)]
    draw_distribution(allocate(records, clients, "iid"), tmp_path / "a.png")

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_draws_and_tells(tmp_path):
    """One command leaves the files, the picture and a table of both."""
    source = tmp_path / "all.json"
    source.write_text(json.dumps([record.to_json() for record in RECORDS]))
    arguments = ["allocate", str(source), "--clients", "2", "--diff-quantity", "1"]
    result = CliRunner().invoke(data, [*arguments, "--out", str(tmp_path / "out")])

    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "distribution.png").stat().st_size > 1000
    own = read_records(tmp_path / "out" / "local_training_1.json")
    assert f"local_training_1.json       {len(own)}" in result.output
    assert "open_qa" in result.output


@pytest.mark.parametrize(
    "options",
    [["--diff-quantity", "1", "--strategy", "iid"], ["--column", "a"], ["--strategy", "by-column"]],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, options):
    """The command never guesses which of two wishes was meant."""
    result = CliRunner().invoke(data, ["allocate", "x.json", "--clients", "2", *options])

    assert result.exit_code == 2
