"""What a task trains, and how: `task.toml` ⇄ canonical JSON ⇄ the digest on chain.

A task file says what its creator chooses. The definition is what participants agree on: the
same choices, plus what follows from them (digest of the base model, tensor list, seed), as
canonical JSON: sorted keys, no white space, integers and strings only. Numbers with a fraction
travel as decimal strings, because languages print floats differently.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Self, get_args, get_origin

from flockllm.errors import InvalidSpec
from flockllm.rounds import Terms

PROTOCOL = 1
"""The protocol version that this package speaks."""

DECIMALS = 10**18
"""Smallest units in one token."""

MAX_DEPTH = 4
"""Brackets within brackets in a definition; Python's parser can be crashed by many."""

MAX_DEFINITION_BYTES = 2**20
"""A definition fits into one raw block, so its digest alone is its CID."""

PACKAGED_BASE = "flockllm-base"
"""Name of the base model that ships with this package."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The frozen model that everyone starts from."""

    base: str = PACKAGED_BASE
    """Hub id (`org/name`), a folder, or `flockllm-base`, the small one in this package."""
    revision: str = ""
    """Commit on the hub; required for a hub id."""
    digest: str = ""
    """Hex digest of the folder's files, for everything that is not on the hub."""
    template: str = "alpaca"
    """How a record becomes a prompt."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The low-rank update `B @ A` (Hu et al., 2021) that is trained and exchanged."""

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a proposer does in one round."""

    epochs: int = 1
    batch: int = 32
    """Records per optimiser step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW. Where A learns too, an eighth of what B alone takes."""
    warmup: float = 0.0
    """Part of the steps over which the learning rate rises from zero."""
    schedule: str = "constant"
    """`constant`, `linear` or `cosine`: how the learning rate falls over a round's steps."""
    decay: float = 1.0
    """Factor on the learning rate from one round to the next; task files: `falling`."""
    cutoff: int = 512
    """Tokens of a record that are used."""
    loss_on: str = "response"
    """`response`, or `all` for the prompt too."""
    max_records: int = 0
    """Records per epoch at the most, drawn anew each round; 0 for all."""
    grad_clip: float = 1.0
    factors: str = "B"
    """What learns of B A: `B`, while A stays as the task's seed drew it, so that averaging is
    exact (FFA-LoRA, Sun et al., 2024); `both`; or `in turns`, B first (RoLoRA, Chen et al., 2024).
    """

    def factors_in(self, round_: int) -> str:
        """The factors that learn in a round, counted from 1: `A`, `B` or `AB`."""
        return {"both": "AB", "B": "B", "in turns": "AB"[round_ % 2]}[self.factors]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a voter scores updates on."""

    heldout: float = 0.1
    """Part of each participant's records that is never trained on."""
    least: int = 16
    """Held-out records at the least, however few records there are."""
    most: int = 512
    """Held-out records at the most."""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How accepted updates become the next global adapter."""

    rule: str = "mean"
    codec: str = "int2"
    """How updates are written to bytes."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Own model code instead of LoRA, see `docs/own-model.md`."""

    image: str = ""
    """CID of an OCI image archive, as `flockllm task pack` prints it; empty for LoRA."""
    size: int = 0
    """Bytes of the archive."""
    parameters: int = 64 * 2**20
    """Bytes of parameters at the most."""
    memory: int = 4 * 2**30
    """Bytes of memory that the code may use."""
    call_seconds: int = 3_600
    """Seconds that one call may take."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What is trained, and under which recipe. Its digest is on chain."""

    name: str
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    aggregation: Aggregation = field(default_factory=Aggregation)
    code: Code = field(default_factory=Code)
    privacy: str = "none"
    seed: str = "00" * 32
    """Hex; makes the first adapter, and with it the task, its own."""
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every tensor of the adapter, by PEFT's name."""
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        _require(self.protocol == PROTOCOL, "protocol", f"{PROTOCOL}", self.protocol)
        _require(self.privacy == "none", "privacy", "'none'", self.privacy)
        _require(1 <= self.lora.rank <= 1024, "lora.rank", "from 1 to 1024", self.lora.rank)
        _require(self.lora.alpha >= 1, "lora.alpha", "at least 1", self.lora.alpha)
        _require(0 <= self.lora.dropout < 1, "lora.dropout", "in [0, 1)", self.lora.dropout)
        _require(bool(self.lora.targets), "lora.targets", "a list of modules", [])
        t = self.training
        _require(1 <= t.epochs <= 100, "training.epochs", "from 1 to 100", t.epochs)
        _require(1 <= t.batch <= 65_536, "training.batch", "from 1 to 65536", t.batch)
        _require(0 < t.lr < 10, "training.lr", "above 0 and below 10", t.lr)
        _require(0 < t.decay <= 1, "training.decay", "above 0 and at most 1", t.decay)
        _require(0 <= t.warmup <= 1, "training.warmup", "in [0, 1]", t.warmup)
        _require(t.grad_clip > 0, "training.grad_clip", "above 0", t.grad_clip)
        _require(t.max_records >= 0, "training.max_records", "at least 0", t.max_records)
        _require(16 <= t.cutoff <= 131_072, "training.cutoff", "from 16 to 131072", t.cutoff)
        for key in ("parameters", "memory", "call_seconds"):
            value = getattr(self.code, key)
            _require(1 <= value < 2**40, f"code.{key}", "at least 1", value)
        if self.code.image:
            _require(self.code.size > 0, "code.size", "the archive's bytes", self.code.size)
        _one_of("training.loss_on", t.loss_on, ("response", "all"))
        _one_of("training.factors", t.factors, ("both", "B", "in turns"))
        _one_of("training.schedule", t.schedule, ("constant", "linear", "cosine"))
        e = self.evaluation
        _require(0 < e.heldout < 1, "evaluation.heldout", "between 0 and 1", e.heldout)
        _require(1 <= e.least <= e.most, "evaluation.least", "from 1 to evaluation.most", e.least)
        try:
            _require(len(bytes.fromhex(self.seed)) == 32, "seed", "32 bytes in hex", self.seed)
        except ValueError:
            raise InvalidSpec(f"seed must be 32 bytes in hex, got {self.seed!r}") from None

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal definitions are equal bytes, hence equal digests."""
        plain = _plain(dataclasses.asdict(self))
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads a stranger's definition.

        Raises:
            InvalidSpec: it breaks the schema, or is not written canonically.
        """
        if len(data) > MAX_DEFINITION_BYTES:
            raise InvalidSpec(f"definition has {len(data)} bytes, at most {MAX_DEFINITION_BYTES}")
        if _depth(data) > MAX_DEPTH:
            raise InvalidSpec(f"definition is nested more than {MAX_DEPTH} deep")
        try:
            definition: Self = _build(cls, json.loads(data), "")
        except ValueError as e:
            raise InvalidSpec(f"definition is not JSON: {e}") from e
        if definition.to_bytes() != data:
            raise InvalidSpec("definition is not canonical JSON: write it with `task create`")
        return definition


@dataclass(frozen=True)
class TaskFile:
    """A `task.toml`: what its creator chooses, before the base model has been looked at."""

    definition: Definition
    terms: Terms
    pool: int
    """What the creator pays in, in the token's smallest unit."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a task file; a key that is not known is an error, not a comment.

        Raises:
            InvalidSpec: with the name of the key and what it may be.
        """
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, ValueError) as e:
            raise InvalidSpec(f"{path}: {e}") from e
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Builds a task file from the tables of a `task.toml`."""
        raw = dict(raw)
        terms = raw.pop("terms", {})
        if not isinstance(terms, dict):
            raise InvalidSpec("[terms] must be a table")
        terms = dict(terms)
        pool = tokens(terms.pop("pool", "1000"), "terms.pool")
        if "bond" in terms:
            terms["bond"] = tokens(terms["bond"], "terms.bond")
        for key in ("protocol", "tensors"):
            if key in raw:
                raise InvalidSpec(f"{key} is not for the task file: `task create` fills it in")
        chosen = _build(Terms, terms, "terms.")
        training = raw.get("training", {})
        if isinstance(training, dict):
            raw["training"] = {"decay": falling(chosen.rounds)} | training
        return cls(_build(Definition, raw, ""), chosen, pool)


def falling(rounds: int) -> float:
    """The decay with which the last round's learning rate is a fifth of the first one's."""
    return round(float(0.2 ** (1 / max(1, rounds - 1))), 6)


def tokens(amount: Any, key: str = "amount") -> int:
    """Whole tokens, as a number or decimal text, in the token's smallest unit."""
    try:
        units = Decimal(str(amount)) * DECIMALS
        if units == units.to_integral_value() and units >= 0:
            return int(units)
    except (InvalidOperation, ValueError):
        pass
    raise InvalidSpec(f"{key} must be an amount of tokens such as 10 or '0.5', got {amount!r}")


def in_tokens(units: int) -> str:
    """The smallest unit as whole tokens, as people read them: two decimals, rounded down."""
    sign, units = ("-", -units) if units < 0 else ("", units)
    return f"{sign}{units // DECIMALS:,}.{units % DECIMALS * 100 // DECIMALS:02}"


MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py")


def folder_digest(folder: Path) -> str:
    """SHA-256, in hex, over name and SHA-256 of every file of a model folder, by name."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in MODEL_FILES):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name}\0{inner}\n".encode())
    return total.hexdigest()


def _require(holds: bool, key: str, wanted: str, got: object) -> None:
    if not holds:
        raise InvalidSpec(f"{key} must be {wanted}, got {got!r}")


def _one_of(key: str, value: str, names: tuple[str, ...]) -> None:
    _require(value in names, key, "one of " + ", ".join(names), value)


def _depth(data: bytes) -> int:
    """How deep brackets are nested in JSON; strings do not count."""
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", data)
    steps = ((byte in b"[{") - (byte in b"]}") for byte in bare)
    return max(itertools.accumulate(steps), default=0)


def _plain(value: Any) -> Any:
    """Decimal strings for floats, lists for tuples: what every JSON library carries exactly."""
    match value:
        case bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return format(Decimal(repr(value)).normalize(), "f")
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
    raise InvalidSpec(f"{value!r} cannot be part of a definition")


def _build(cls: type, raw: Any, prefix: str) -> Any:
    """A dataclass from a table, naming every key that is unknown or of the wrong type."""
    if not isinstance(raw, dict):
        raise InvalidSpec(f"{prefix.rstrip('.') or 'the task'} must be a table, got {raw!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(raw) - set(known)):
        raise InvalidSpec(f"unknown key {prefix}{unknown[0]}; known are {', '.join(known)}")
    missing = [
        f.name
        for f in known.values()
        if f.name not in raw
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InvalidSpec(f"{prefix}{missing[0]} is missing")
    return cls(**{key: _coerce(known[key].type, raw[key], prefix + key) for key in raw})


def _coerce(wanted: Any, value: Any, key: str) -> Any:
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        return _build(wanted, value, f"{key}.")
    if wanted is float and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        _require(math.isfinite(number), key, "a number", value)
        return number
    if wanted in (int, str) and isinstance(value, wanted) and not isinstance(value, bool):
        return value
    if get_origin(wanted) is tuple and isinstance(value, list):
        inner = get_args(wanted)[0]
        return tuple(_coerce(inner, item, f"{key}[{i}]") for i, item in enumerate(value))
    if get_origin(wanted) is dict and isinstance(value, dict):
        inner = get_args(wanted)[1]
        return {name: _coerce(inner, item, f"{key}.{name}") for name, item in value.items()}
    name = getattr(wanted, "__name__", str(wanted)) if get_origin(wanted) is None else "a list"
    raise InvalidSpec(f"{key} must be {name}, got {value!r}")
