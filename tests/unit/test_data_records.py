"""Reading instruction records: every format, every alias, and every fault with its place."""

import csv
import json

import pytest

from flockllm.data import Record, describe, read_records, write_records
from flockllm.errors import InvalidData

ROWS = [
    {"instruction": "Who?", "context": "", "response": "Me.", "category": "open_qa"},
    {"instruction": "What is «it», said, so?", "context": "A\nB", "response": "x", "category": "c"},
]
RECORDS = [Record("Who?", "Me.", "", "open_qa"), Record(ROWS[1]["instruction"], "x", "A\nB", "c")]


def write_json(path):
    """A list over many lines."""
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")


def write_jsonl(path):
    """An object a line, blank lines between."""
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")


def write_csv(path, delimiter=","):
    """As a spreadsheet saves it: byte order mark, CRLF, line breaks in quotes."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path):
    """A Parquet table."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


FORMATS = {
    "a.json": write_json,
    "lines.json": write_jsonl,
    "a.jsonl": write_jsonl,
    "a.CSV": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(tmp_path, name):
    """The format of a file makes no difference to what is trained on."""
    FORMATS[name](tmp_path / name)

    assert read_records(tmp_path / name) == RECORDS


def test_a_folder_laid_out_like_a_hub_data_set_is_read_by_the_hubs_library(tmp_path, monkeypatch):
    """The code that reads from the hub runs; only the hub is replaced, by a folder."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "org" / "name").mkdir(parents=True)
    write_jsonl(tmp_path / "org" / "name" / "train.jsonl")

    assert read_records(tmp_path / "org" / "name") == RECORDS


def test_what_is_written_is_read_again(tmp_path):
    """Writing loses nothing, other columns and unusual characters included."""
    records = [*RECORDS, Record("\u2028 \U0001f600 \x00", '"\\', others={"source": {"n": 1}})]
    write_records(records, tmp_path / "a.json")

    assert read_records(tmp_path / "a.json") == records


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"instruction": "i", "input": "c", "output": "o"}, Record("i", "o", "c")),
        ({"prompt": "i", "completion": "o"}, Record("i", "o")),
        ({"question": "i", "answer": "o", "id": 3}, Record("i", "o", others={"id": 3})),
        (
            {"instruction": "i", "prompt": "p", "response": "o", "context": None},
            Record("i", "o", others={"prompt": "p"}),
        ),
    ],
    ids=["alpaca", "prompt", "question", "first name wins"],
)
def test_columns_may_have_their_other_names(tmp_path, row, record):
    """The documented aliases map to fields; what no field is read from stays as it is."""
    (tmp_path / "a.jsonl").write_text(json.dumps(row))

    assert read_records(tmp_path / "a.jsonl") == [record]


GOOD = '{"instruction": "i", "response": "r"}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", f"{GOOD}\n{{oops\n", r"a\.jsonl:2: broken JSON in column 2"),
        ("a.json", f"[\n{GOOD},\n{GOOD}x\n]", r"a\.json:3: after a record"),
        ("a.json", f"[\n{GOOD},\n{{]\n", r"a\.json:3: broken JSON in column 2"),
        ("a.json", f"[\n{GOOD}\n", r"a\.json:3: after a record.*cut"),
        ("a.json", f"[{GOOD}]\n\n]", r"a\.json:1: after the closing"),
        ("a.json", "[]", "holds no record"),
        ("a.json", "", "holds no record"),
        ("a.json", f"[{GOOD},\n7]", r"a\.json:2: expected an object .* got 7"),
        ("a.jsonl", '{"text": "x"}', r"a\.jsonl:1: no column 'instruction' \(nor prompt.*are text"),
        (
            "a.jsonl",
            f'{GOOD}\n{{"instruction": "i"}}',
            r":2: no column 'response', which the first",
        ),
        (
            "a.jsonl",
            '{"instruction": 5, "response": "r"}',
            r":1: column 'instruction' must be text",
        ),
        ("a.jsonl", '{"instruction": "i", "response": " "}', r":1: column 'response' is blank"),
        ("a.jsonl", '{"instruction": "\\ud800", "response": "r"}', "half a character"),
        ("a.csv", "instruction,response\ni,r\ni,a, b\n", r"a\.csv:3: has more than the 2 fields"),
        ("a.csv", 'instruction,response\n"i\n\n",r\ni\n', r"a\.csv:5: has fewer than the 2 fields"),
        ("a.csv", 'instruction,response\n"i,r\n', r"a\.csv:\d: broken CSV"),
        ("a.xlsx", "x", r"cannot tell the format from '\.xlsx'"),
        ("a.parquet", "x", "not a readable Parquet file"),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path, name, text, message):
    """Whoever has to mend a file is told which line and which column."""
    (tmp_path / name).write_text(text)

    with pytest.raises(InvalidData, match=message):
        read_records(tmp_path / name)


def test_a_wrong_encoding_is_told_with_its_line(tmp_path):
    """Latin-1 from an old spreadsheet is a fault of a line, not a stack trace."""
    (tmp_path / "a.csv").write_bytes(b"instruction,response\ni,r\ncaf\xe9,r\n")

    with pytest.raises(InvalidData, match=r"a\.csv:3: not UTF-8"):
        read_records(tmp_path / "a.csv")


@pytest.mark.parametrize("source", ["no.json", "no/such.csv"])
def test_a_missing_file_is_not_taken_for_a_hub_data_set(source):
    """A mistyped path says so at once, and asks no network."""
    with pytest.raises(InvalidData, match="no such file"):
        read_records(source)


def test_a_summary_counts_what_a_participant_wants_to_know():
    """Records, categories, repeats, lengths in the caller's unit, and the share that is cut."""
    records = [Record("a b", "c", category="x"), Record("a b", "c", category="y"), Record("a", "b")]
    words = describe(records, lambda r: len(f"{r.instruction} {r.response}".split()), "words", 2)

    assert (words.records, words.duplicates, words.total, words.longest) == (3, 1, 8, 3)
    assert words.cut == pytest.approx(2 / 3)
    assert words.categories == {"x": 1, "y": 1, "": 1}
