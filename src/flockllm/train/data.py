"""Records → tokens: once per participant, then the same arrays in every round."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flockllm.data import Record
from flockllm.errors import InvalidData, ModelError
from flockllm.train.templates import OWN_MARKS, template


@dataclass(frozen=True, eq=False)
class Example:
    """One record as tokens."""

    tokens: NDArray[np.int32]
    """Prompt, response and end mark, at most `cutoff` long."""

    start: int
    """First token that the loss counts; from here on all of them do. Never 0."""

    form: int
    """Which form of the template it has: examples of one form begin with the same tokens."""

    cut: bool
    """Whether it was longer than `cutoff`."""

    @property
    def learned(self) -> int:
        """How many tokens the loss counts."""
        return max(0, len(self.tokens) - self.start)


@dataclass(frozen=True)
class Summary:
    """What a participant's data is, for a message."""

    records: int
    tokens: int
    longest: int
    """Tokens of the longest record, after cutting."""

    cut: float
    """Share of records that were longer than the cutoff."""

    def __str__(self) -> str:
        text = f"{self.records:,} records, {self.tokens:,} tokens, longest {self.longest}"
        return text + (f", {self.cut:.1%} cut off" if self.cut else "")


def tokenize(
    records: Sequence[Record],
    tokenizer: Any,
    template_name: str = "alpaca",
    cutoff: int = 512,
    loss_on: str = "response",
) -> list[Example]:
    """Tokens of every record, in order.

    Prompt and response are tokenized as one text, and the loss counts from the first token that
    reaches into the response (`loss_on="response"`) or from the second token (`"all"`).

    Raises:
        InvalidSpec: no such template.
        ModelError: the tokenizer cannot say where a token lies in the text.
    """
    render = template(template_name)
    if not tokenizer.is_fast:
        raise ModelError("this base model has only a slow tokenizer; convert it to tokenizer.json")
    if not records:
        return []
    texts = [render(tokenizer, r.instruction, r.context, r.response) for r in records]
    prompts = [render(tokenizer, r.instruction, r.context, None) for r in records]
    encoded = tokenizer(
        texts,
        add_special_tokens=template_name not in OWN_MARKS,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )

    end = tokenizer.eos_token_id
    examples = []
    for record, text, prompt, ids, offsets in zip(
        records, texts, prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        marked = text.rstrip().endswith(tokenizer.eos_token or "\0")
        tokens = ids if end is None or marked or ids[-1:] == [end] else [*ids, end]
        start = 1
        if loss_on == "response":
            ends = np.asarray([to for _, to in offsets])
            inside = np.flatnonzero(ends > len(prompt))
            start = max(1, int(inside[0]) if len(inside) else len(ids))
        examples.append(
            Example(
                np.asarray(tokens[:cutoff], np.int32),
                start,
                int(bool(record.context)),
                len(tokens) > cutoff,
            )
        )
    return examples


def split(
    records: Sequence[Record], heldout: float | int, seed: bytes
) -> tuple[list[Record], list[Record]]:
    """Splits into (train, held-out), every record in exactly one, each in the order given.

    A record's place depends on its content and the seed alone, not on where it stands in the
    file: the split survives reordering, and a participant that restarts holds out the same ones.

    Args:
        records: at least 2.
        heldout: share below 1, or a number of records from 1 on; at least one record stays on
            each side.
        seed: secret of the participant, so that nobody can train on what it scores on.

    Raises:
        InvalidData: fewer than 2 records.
    """
    if len(records) < 2:
        raise InvalidData(
            f"{len(records)} records; at least 2 are needed, to train on and to score on"
        )
    wanted = round(heldout * len(records)) if heldout < 1 else int(heldout)
    wanted = min(max(wanted, 1), len(records) - 1)
    ranks = [_rank(record, seed) for record in records]
    chosen = set(sorted(range(len(records)), key=lambda i: (ranks[i], i))[:wanted])
    train = [record for i, record in enumerate(records) if i not in chosen]
    return train, [records[i] for i in sorted(chosen)]


def describe(examples: Sequence[Example]) -> Summary:
    """How many, how long, how much was cut off."""
    lengths = [len(example.tokens) for example in examples]
    cut = sum(example.cut for example in examples) / max(1, len(examples))
    return Summary(len(examples), sum(lengths), max(lengths, default=0), cut)


def _rank(record: Record, seed: bytes) -> bytes:
    content = json.dumps([record.instruction, record.context, record.response]).encode()
    return hashlib.blake2b(content, key=hashlib.sha256(seed).digest(), digest_size=16).digest()
