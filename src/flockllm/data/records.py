"""Instruction records: what one is, reading them from files, summing them up, writing them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flockllm.errors import InvalidData

COLUMNS: dict[str, tuple[str, ...]] = {
    "instruction": ("instruction", "prompt", "question"),
    "response": ("response", "output", "answer", "completion"),
    "context": ("context", "input"),
    "category": ("category",),
}
"""Field of a record → columns it is read from. The first name wins where a file has several."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""What JSON can spell but no text file or tokenizer can hold."""

DATASET_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
"""A data set on the Hugging Face hub, as `org/name` or `org/name@revision`."""


@dataclass(frozen=True)
class Record:
    """One example: what is asked, perhaps about a text, and the answer to learn."""

    instruction: str
    response: str
    context: str = ""
    """A text that the instruction is about; empty if there is none."""

    category: str = ""
    """What kind of task it is; only allocation looks at it."""

    others: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Columns that no field above is read from; kept, written out again, and never trained on."""

    def column(self, name: str) -> object:
        """The value of a field or of another column; None where the record has none."""
        return getattr(self, name) if name in COLUMNS else self.others.get(name)

    def to_json(self) -> dict[str, Any]:
        """The fields in the original's order, then the other columns."""
        return {
            "instruction": self.instruction,
            "context": self.context,
            "response": self.response,
            "category": self.category,
            **self.others,
        }


# Reading ----------------------------------------------------------------------------------------


def read_records(source: Path | str) -> list[Record]:
    """Reads a JSON list, JSON lines, CSV or TSV, a Parquet file, or a data set of the hub.

    Columns may have the alternative names in `COLUMNS`. `instruction` and `response` must be there
    and must not be blank; `context` and `category` may be missing, empty or null.

    Raises:
        InvalidData: naming the file, the line (Parquet and hub: the row) and the column.
    """
    path = Path(source)
    named = DATASET_NAME.fullmatch(str(source)) and not path.suffix[1:].isalpha()
    if path.is_dir() or (named and not path.exists()):
        rows = _hub_rows(str(source))
    elif not path.exists():
        raise InvalidData(
            f"{path}: no such file. Give a .json, .jsonl, .csv or .parquet file, "
            "or a Hugging Face data set as org/name"
        )
    else:
        rows = _file_rows(path)

    records: list[Record] = []
    columns: dict[str, str] = {}
    for where, row in rows:
        if not columns:
            columns = _columns(row, where)
        records.append(_record(row, columns, where))
    if not records:
        raise InvalidData(f"{source}: holds no record")
    return records


Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Where a row stands, as `file:line`, and the row."""


def _file_rows(path: Path) -> Rows:
    match path.suffix.lower():
        case ".parquet":
            return _parquet_rows(path)
        case ".csv":
            return _csv_rows(path, ",")
        case ".tsv":
            return _csv_rows(path, "\t")
        case ".json" | ".jsonl" | ".ndjson":
            text = _text(path)
            listed = text.lstrip().startswith("[")
            return _json_list_rows(path, text) if listed else _json_lines_rows(path, text)
        case suffix:
            raise InvalidData(
                f"{path}: cannot tell the format from {suffix or 'a name without suffix'!r}; "
                "rename it to .json, .jsonl, .csv, .tsv or .parquet"
            )


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise InvalidData(f"{path}:{line}: not UTF-8; save the file as UTF-8") from e


def _json_list_rows(path: Path, text: str) -> Rows:
    """Takes a list apart record by record, so that each has its line and no tree is built twice."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")
    line, counted = 1, 0

    def skip(at: int) -> int:
        found = space.match(text, at)
        return found.end() if found else at

    at = skip(text.index("[") + 1)
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as e:
            raise InvalidData(f"{path}:{e.lineno}: broken JSON in column {e.colno}: {e.msg}") from e
        yield f"{path}:{line}", _mapping(row, f"{path}:{line}")
        at = skip(at)
        if text.startswith(",", at):
            at = skip(at + 1)
        elif not text.startswith("]", at):
            line += text.count("\n", counted, at)
            raise InvalidData(f"{path}:{line}: after a record comes ',' or ']'; is the file cut?")
    if rest := text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        raise InvalidData(f"{path}:{line}: after the closing ']' comes {rest[:20]!r}; remove it")


def _json_lines_rows(path: Path, text: str) -> Rows:
    # Not splitlines: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise InvalidData(
                f"{path}:{number}: broken JSON in column {e.colno}: {e.msg}; "
                "each line must be one whole object"
            ) from e
        yield f"{path}:{number}", _mapping(row, f"{path}:{number}")


def _mapping(row: object, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InvalidData(f"{where}: expected an object with named columns, got {_short(row)}")
    return row


def _csv_rows(path: Path, delimiter: str) -> Rows:
    _text(path)  # so that a broken encoding is told with its line
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            count = len(reader.fieldnames or ())  # reads the header
            last = reader.line_num
            for row in reader:
                where, last = f"{path}:{last + 1}", reader.line_num
                # DictReader files surplus fields under None, and missing ones as None.
                if None in row or None in row.values():
                    raise InvalidData(
                        f"{where}: has {'more' if None in row else 'fewer'} than the {count} "
                        "fields of the header; put quotes around text with commas or line breaks"
                    )
                yield where, row
        except csv.Error as e:
            raise InvalidData(f"{path}:{reader.line_num}: broken CSV: {e}") from e


def _parquet_rows(path: Path) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise InvalidData(f"{path}: reading Parquet needs `pip install pyarrow`") from e
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"{path}: row {n}", row) for n, row in enumerate(rows, start=1))
    except pyarrow.ArrowException as e:
        raise InvalidData(f"{path}: not a readable Parquet file: {e}") from e


def _hub_rows(name: str) -> Rows:
    """The `train` split of a data set on the Hugging Face hub, or of a folder laid out like one."""
    try:
        import datasets
    except ImportError as e:
        raise InvalidData(
            f"{name}: no such file; if it is a data set of the hub, `pip install datasets` first"
        ) from e
    repository, _, revision = name.partition("@")
    try:
        split = datasets.load_dataset(repository, split="train", revision=revision or None)
    except Exception as e:  # the library passes on whatever its network stack raises
        raise InvalidData(
            f"{name}: cannot be loaded from the hub ({type(e).__name__}: {e}); "
            "check the name and the network, or give a file"
        ) from e
    yield from ((f"{name}: row {number}", row) for number, row in enumerate(split, start=1))


def _columns(row: Mapping[str, Any], where: str) -> dict[str, str]:
    """Which column each field is read from: decided on the first row, kept for the whole file."""
    found = {
        name: next(alias for alias in aliases if alias in row)
        for name, aliases in COLUMNS.items()
        if any(alias in row for alias in aliases)
    }
    for name in ("instruction", "response"):
        if name not in found:
            raise InvalidData(
                f"{where}: no column {name!r} (nor {', '.join(COLUMNS[name][1:])}); "
                f"the columns are {', '.join(map(str, row)) or 'none'}; rename one"
            )
    return found


def _record(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Record:
    values: dict[str, str] = {}
    for name, column in columns.items():
        required = name in ("instruction", "response")
        if required and column not in row:
            raise InvalidData(f"{where}: no column {column!r}, which the first record has; add it")
        value = row.get(column)
        if value is None and not required:
            value = ""
        if not isinstance(value, str):
            raise InvalidData(f"{where}: column {column!r} must be text, got {_short(value)}")
        if required and not value.strip():
            raise InvalidData(f"{where}: column {column!r} is blank; fill it or drop the record")
        if SURROGATE.search(value):
            raise InvalidData(f"{where}: column {column!r} has half a character (a lone surrogate)")
        values[name] = value
    used = set(columns.values())
    return Record(**values, others={k: v for k, v in row.items() if k not in used})


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# What is in it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a participant wants to know about its data before it stakes on it."""

    records: int
    categories: Mapping[str, int]
    """Records per category, the largest first."""

    duplicates: int
    """Records that repeat an earlier one, word for word."""

    unit: str
    """What the lengths below count: characters or tokens."""

    total: int
    longest: int
    cut: float
    """Share of the records that are longer than the cutoff, 0 to 1; 0 without a cutoff."""


def characters(record: Record) -> int:
    """Length of a record where no tokenizer is at hand."""
    return len(record.instruction) + len(record.context) + len(record.response)


def describe(
    records: Sequence[Record],
    length: Callable[[Record], int] = characters,
    unit: str = "characters",
    cutoff: float = math.inf,
) -> Summary:
    """Sums up records. A trainer passes its own token count as `length` and its cutoff."""
    lengths = [length(record) for record in records]
    distinct = {(r.instruction, r.context, r.response) for r in records}
    return Summary(
        records=len(records),
        categories=dict(Counter(r.category for r in records).most_common()),
        duplicates=len(records) - len(distinct),
        unit=unit,
        total=sum(lengths),
        longest=max(lengths, default=0),
        cut=sum(n > cutoff for n in lengths) / max(1, len(lengths)),
    )


# Writing ----------------------------------------------------------------------------------------


def write_records(records: Iterable[Record], path: Path) -> None:
    """Writes a JSON list, a record a line: a text editor and `diff` can work with it."""
    lines = (json.dumps(record.to_json(), ensure_ascii=False) for record in records)
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    path.write_text(text, encoding="utf-8", newline="\n")
