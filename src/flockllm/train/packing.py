"""Many sequences as one row: no padding, and what they begin with in common only once.

    sequence 0   [ prefix | own tokens 0 ]      is the root: it stands there whole
    sequence 1            [ own tokens 1 ]      attends to the root's prefix and to itself
    sequence 2            [ own tokens 2 ]      likewise
    row          [ prefix | own 0 | own 1 | own 2 ]     positions count on from the prefix

Linear layers, norms and the MLP see one long row; only attention has to know where sequences
begin, and it gets a `Layout` for that. The prefix's keys and values are computed once per row and
used by every sequence of the same template form; its gradients add up over them by themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from flockllm.train.data import Example

ATTENTION = "flockllm_packed"
"""Name of `packed_attention` in transformers. No mask is built for it: it needs none."""


@dataclass(frozen=True)
class Segment:
    """One sequence's place in a row."""

    start: int
    length: int
    """Its own tokens stand at `start` to `start + length`."""

    root: int
    """Where the row holds what it begins with …"""

    shared: int
    """… and how many tokens of it; 0 for a root."""


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a row are; what attention has to know."""

    segments: tuple[Segment, ...]

    @cached_property
    def longest(self) -> int:
        """Length of the longest sequence, its prefix included."""
        return max(s.shared + s.length for s in self.segments)

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """For kernels with variable lengths: the row's places, prefixes repeated per sequence."""
        return np.concatenate(
            [np.r_[s.root : s.root + s.shared, s.start : s.start + s.length] for s in self.segments]
        )


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

    # Predictions within a prefix are made once, with the number of sequences as weight.
    pairs = np.concatenate(places) << 32 | np.concatenate(targets)
    pairs, counts = np.unique(pairs, return_counts=True)
    return Row(
        torch.from_numpy(np.concatenate(tokens)).long()[None].to(device),
        torch.from_numpy(np.concatenate(positions))[None].to(device),
        Layout(tuple(segments)),
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


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a row.

    Args:
        module: the model's attention layer.
        query: (1, heads, T, head size); key and value may have fewer heads.
        key: likewise.
        value: likewise.
        attention_mask: None; the layout takes its place.
        dropout: of the attention weights.
        scaling: of the scores.
        layout: handed through the model's forward.
        **kwargs: what the model wants of its attention.

    Raises:
        NotImplementedError: the model wants something else than plain causal attention, or does
            not hand the layout through.
    """
    if layout is None or attention_mask is not None or not getattr(module, "is_causal", True):
        raise NotImplementedError("attention is not plain causal attention over a row")
    for name in ("softcap", "s_aux", "position_bias", "cache"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    if (kwargs.get("sliding_window") or layout.longest) < layout.longest:
        raise NotImplementedError("attention with a sliding window")

    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        return _varlen(query, key, value, scaling, layout), None

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    lengths = [s.length for s in layout.segments]
    rows = [x.split(lengths, dim=2) for x in (query, key, value)]
    roots = {s.start: i for i, s in enumerate(layout.segments) if not s.shared}
    prefixes: dict[int, list[Tensor]] = {}
    outputs = []
    for i, s in enumerate(layout.segments):
        qkv = [row[i] for row in rows]
        if s.shared:
            if s.root not in prefixes:
                prefixes[s.root] = [row[roots[s.root]][:, :, : s.shared] for row in rows]
            # The prefix's queries come along, and their outputs are dropped: that keeps the mask
            # plainly causal, for which the kernels skip what lies above the diagonal.
            qkv = [torch.cat(pair, dim=2) for pair in zip(prefixes[s.root], qkv, strict=True)]
        q, k, v = qkv
        out = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling
        )
        outputs.append(out[:, :, s.shared :])
    return torch.cat(outputs, dim=2).transpose(1, 2), None  # (1, T, heads, head size)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, layout: Layout
) -> Tensor:
    """One flash kernel for all sequences; queries stand at the end of their keys."""
    from torch.nn.attention.varlen import varlen_attn

    places = torch.from_numpy(layout.keys).to(query.device)
    key, value = (x[0].transpose(0, 1)[places] for x in (key, value))  # (keys, heads, size)
    ends = np.cumsum([[0, 0], *([s.length, s.shared + s.length] for s in layout.segments)], axis=0)
    of_queries, of_keys = torch.from_numpy(ends.T.astype(np.int32)).to(query.device)
    out = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key,
        value,
        of_queries,
        of_keys.contiguous(),
        max(s.length for s in layout.segments),
        layout.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)  # noqa: S101
    return out[None]


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


AttentionInterface.register(ATTENTION, packed_attention)
