"""Causal attention over a row of many sequences, each for itself.

On a GPU one flash kernel takes them all. Elsewhere `BlockAttention` works through the row in blocks
of rows, with the keys that these rows may see and no others: long sequences are cut, short ones are
taken together, and a prefix that they share is looked at where it stands. As in FlashAttention
(Dao et al., 2022) weights are computed again in the backward pass rather than kept, all but `KEPT`
of them, so that memory grows with the length of the row alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface

NAME = "flockllm_packed"
"""Name of `packed_attention` in transformers. No mask is built for it: it needs none."""

BLOCK = 64
"""Rows that are handled at a time."""

KEPT = 2**20
"""How many weights a layer keeps for its backward pass; it computes the others again."""


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

    @property
    def stop(self) -> int:
        """Behind its last token."""
        return self.start + self.length


class Block(NamedTuple):
    """Some rows of a group, next to each other."""

    rows: slice
    seen: int
    """How many of the group's keys they look at, from the first on."""
    hidden: Tensor
    """(rows, the last keys of these): -inf where a row must not look, else 0."""


class Group(NamedTuple):
    """Sequences that are handled together, or one long sequence."""

    spans: tuple[slice, ...]
    """Where the row has their keys: a prefix that stands elsewhere, and their own."""
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a row are; what attention has to know."""

    segments: tuple[Segment, ...]
    read: NDArray[np.int64]
    """The places, in order, whose last hidden states the loss looks at."""

    @cached_property
    def longest(self) -> int:
        """Length of the longest sequence, its prefix included."""
        return max(s.shared + s.length for s in self.segments)

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.segments[-1].stop

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """For kernels with variable lengths: the row's places, prefixes repeated per sequence."""
        return np.concatenate(
            [np.r_[s.root : s.root + s.shared, s.start : s.stop] for s in self.segments]
        )

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All rows, in blocks."""
        return tuple(_group(together) for together in _together(self.segments))

    @cached_property
    def read_groups(self) -> tuple[Group, ...]:
        """Only the blocks with rows that are read, cut to begin with the first of these."""
        return tuple(
            group._replace(blocks=tuple(_from_first(group.blocks, self.read)))
            for group in self.groups
        )


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
        module: the model's attention layer; with `only_read` (see `last`) set on it, rows that
            nobody reads need no result.
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
    scaled = query[0] * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    groups = layout.read_groups if getattr(module, "only_read", False) else layout.groups
    shared = scaled.unflatten(0, (key.shape[1], -1))  # (key heads, queries of each, T, head size)
    out: Tensor = BlockAttention.apply(shared, key[0], value[0], groups, dropout)  # type: ignore[no-untyped-call]
    return out[None], None


class BlockAttention(torch.autograd.Function):
    """Attention in blocks of rows. h: key heads; g: query heads of each; d: head size."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (h, g, T, d), scaled
        key: Tensor,  # (h, T, d)
        value: Tensor,  # (h, T, d)
        groups: Sequence[Group],
        dropout: float,
    ) -> Tensor:
        """(T, h · g, d); zeros for rows in no block."""
        heads, each, length, size = query.shape
        out = query.new_zeros(length, heads, each, size)
        by_head = out.permute(1, 2, 0, 3)
        masks: list[Tensor] = []
        kept: list[Tensor] = []
        left = KEPT if any(ctx.needs_input_grad) else 0
        for group in groups:
            keys, values = _gather(key, group.spans), _gather(value, group.spans)
            for block in group.blocks:
                weights = _weights(_rows(query, block), keys, block)
                left -= weights.numel()
                if left >= 0:
                    kept.append(weights)
                if dropout:
                    masks.append(torch.rand_like(weights).ge_(dropout).div_(1 - dropout))
                    weights = weights * masks[-1]
                found = torch.bmm(weights, values[:, : block.seen])
                by_head[:, :, block.rows] = found.unflatten(1, (each, -1))
        ctx.groups, ctx.masks, ctx.kept = groups, masks, kept
        ctx.save_for_backward(query, key, value)
        return out.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        heads, each, length, size = query.shape
        into_query = query.new_zeros(length, heads, each, size).permute(1, 2, 0, 3)
        into_key, into_value = (
            x.new_zeros(length, heads, size).transpose(0, 1) for x in (key, value)
        )
        by_head = outer[0].unflatten(1, (heads, each)).permute(1, 2, 0, 3)
        masks, kept = iter(ctx.masks), iter(ctx.kept)
        for group in ctx.groups:
            keys, values = _gather(key, group.spans), _gather(value, group.spans)
            into_keys, into_values = (
                torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (keys, values)
            )
            for block in group.blocks:
                rows, above, seen = _rows(query, block), _rows(by_head, block), block.seen
                weights = next(kept, None)
                if weights is None:
                    weights = _weights(rows, keys, block)
                slope = torch.bmm(above, values[:, :seen].mT)  # of the weights
                mask = next(masks, None)
                if mask is not None:
                    slope.mul_(mask)
                told = weights if mask is None else weights * mask
                into_values[:, :seen].baddbmm_(told.mT, above)
                slope = _softmax_backward(slope, weights, -1, weights.dtype)  # of the scores
                into_query[:, :, block.rows] = torch.bmm(slope, keys[:, :seen]).unflatten(
                    1, (each, -1)
                )
                into_keys[:, :seen].baddbmm_(slope.mT, rows)
            _scatter(into_key, group.spans, into_keys)
            _scatter(into_value, group.spans, into_values)
        return into_query, into_key, into_value, None, None


_softmax_backward = torch.ops.aten._softmax_backward_data.default


def _gather(x: Tensor, spans: Sequence[slice]) -> Tensor:
    """A group's keys or values, (h, keys, d)."""
    return x[:, spans[0]] if len(spans) == 1 else torch.cat([x[:, span] for span in spans], 1)


def _scatter(into: Tensor, spans: Sequence[slice], x: Tensor) -> None:
    """Adds to where `_gather` took from."""
    at = 0
    for span in spans:
        into[:, span] += x[:, at : at + span.stop - span.start]
        at += span.stop - span.start


def _rows(x: Tensor, block: Block) -> Tensor:
    """(h, g, T, d) → (h, g · rows, d)."""
    return x[:, :, block.rows].flatten(1, 2)


def _weights(rows: Tensor, keys: Tensor, block: Block) -> Tensor:
    """softmax(rows · keys), (h, g · rows, keys)."""
    scores = torch.bmm(rows, keys[:, : block.seen].mT)
    some = scores.unflatten(1, (-1, len(block.hidden)))[..., -block.hidden.shape[1] :]
    some += block.hidden.to(scores)
    return torch.softmax(scores, -1)


def _together(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Cuts a row into short sequences of one root that fill a block, and long ones alone."""
    for _, family in groupby(segments, key=lambda s: s.root):
        group: list[Segment] = []
        for segment in family:
            if group and segment.stop - group[0].start > BLOCK:
                yield group
                group = []
            group.append(segment)
        yield group


def _group(segments: Sequence[Segment]) -> Group:
    first, stop = segments[0], segments[-1].stop
    shared = segments[-1].shared  # the same for all but a root, whose own tokens it is
    apart = first.start >= first.root + shared
    own = slice(first.start, stop)
    spans = (slice(first.root, first.root + shared), own) if shared and apart else (own,)
    before = shared if apart else 0  # keys that stand before the group's own rows
    if len(segments) == 1:
        blocks = [
            Block(slice(at, end), before + end - first.start, _future(end - at))
            for at in range(first.start, stop, BLOCK)
            for end in [min(at + BLOCK, stop)]
        ]
        return Group(spans, tuple(blocks))
    hidden = torch.full((stop - first.start, before + stop - first.start), -torch.inf)
    hidden[:, :shared] = 0
    for s in segments:
        rows = slice(s.start - first.start, s.stop - first.start)
        hidden[rows, before + rows.start : before + rows.stop] = _future(s.length)
        if not s.shared:
            hidden[rows, : before + rows.start] = -torch.inf
    return Group(spans, (Block(slice(first.start, stop), hidden.shape[1], hidden),))


def _future(count: int) -> Tensor:
    return torch.full((count, count), -torch.inf).triu(1)


def _from_first(blocks: Sequence[Block], read: NDArray[np.int64]) -> Iterator[Block]:
    for block in blocks:
        at = int(np.searchsorted(read, block.rows.start))
        if at < len(read) and read[at] < block.rows.stop:
            start = int(read[at])
            hidden = block.hidden[start - block.rows.start :]
            yield block._replace(rows=slice(start, block.rows.stop), hidden=hidden)


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


AttentionInterface.register(NAME, packed_attention)
