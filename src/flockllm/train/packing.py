"""Many sequences as one row: no padding, and what they begin with in common only once.

    sequence 0   [ prefix | own tokens 0 ]      is the root: it stands there whole
    sequence 1            [ own tokens 1 ]      attends to the root's prefix and to itself
    sequence 2            [ own tokens 2 ]      likewise
    row          [ prefix | own 0 | own 1 | own 2 ]     positions count on from the prefix

Linear layers, norms and the MLP see one long row; only `attention` has to know where sequences
begin, and it gets a `Layout` for that. The prefix's keys and values are computed once per row and
used by every sequence of the same template form; its gradients add up over them by themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flockllm.train.attention import Layout, Segment
from flockllm.train.data import Example


@dataclass(frozen=True)
class Row:
    """A micro-batch: T tokens of the row, N predictions that the loss counts."""

    tokens: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    layout: Layout
    places: Tensor
    """(N,): whose hidden state predicts; a place in a prefix can stand here several times."""

    targets: Tensor
    """(N,): which token is right."""

    weights: Tensor
    """(N,): how many sequences share that prediction."""


def pack(
    examples: Sequence[Example], device: torch.device | str = "cpu", share: bool = True
) -> Row:
    """Lays examples out as one row, with `share` each form's common beginning only once."""
    tokens: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int64]] = []
    segments: list[Segment] = []
    places: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int32]] = []
    at = 0
    for group in _forms(examples) if share else [[example] for example in examples]:
        prefix, root = _common(group), at
        for i, example in enumerate(group):
            shared = prefix if i else 0
            own = example.tokens[shared:]
            where = np.r_[root : root + shared, at : at + len(own)]  # of each of its tokens
            tokens.append(own)
            positions.append(np.arange(shared, len(example.tokens)))
            segments.append(Segment(at, len(own), root, shared))
            places.append(where[example.start - 1 : -1])
            targets.append(example.tokens[example.start :])
            at += len(own)

    read = np.unique(np.concatenate(places))
    # Predictions within a prefix are made once, with the number of sequences as weight.
    pairs = np.concatenate(places) << 32 | np.concatenate(targets)
    pairs, counts = np.unique(pairs, return_counts=True)
    return Row(
        torch.from_numpy(np.concatenate(tokens)).long()[None].to(device),
        torch.from_numpy(np.concatenate(positions))[None].to(device),
        Layout(tuple(segments), read),
        torch.from_numpy(pairs >> 32).to(device),
        torch.from_numpy(pairs & 0xFFFFFFFF).to(device),
        torch.from_numpy(counts).to(device),
    )


def micro_batches(examples: Sequence[Example], budget: int) -> Iterator[list[Example]]:
    """Cuts examples into groups of similar length, each of at most `budget` tokens with padding.

    A longer example goes alone. Without padding a group has fewer tokens; the bound holds.
    """
    group: list[Example] = []
    longest = 0
    for example in sorted(examples, key=lambda e: (e.form, len(e.tokens))):
        longest = max(longest, len(example.tokens))
        if group and (len(group) + 1) * longest > budget:
            yield group
            group, longest = [], len(example.tokens)
        group.append(example)
    if group:
        yield group


def _forms(examples: Sequence[Example]) -> list[list[Example]]:
    forms: dict[int, list[Example]] = {}
    for example in examples:
        forms.setdefault(example.form, []).append(example)
    return list(forms.values())


def _common(group: Sequence[Example]) -> int:
    """How many tokens all of a group begin with; each keeps at least one of its own."""
    prefix = group[0].tokens[: min(len(example.tokens) for example in group) - 1]
    for example in group[1:]:
        differs = np.flatnonzero(prefix != example.tokens[: len(prefix)])
        prefix = prefix[: differs[0]] if len(differs) else prefix
    return len(prefix) if len(group) > 1 else 0
