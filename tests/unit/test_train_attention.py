"""Attention in blocks, against the same thing with one large mask."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flockllm.train import attention
from flockllm.train.attention import BLOCK, BlockAttention, Layout
from flockllm.train.data import Example
from flockllm.train.packing import pack

HEADS, EACH, SIZE = 2, 2, 4


def layout_of(lengths, prefix, forms, tail):
    """A row of sequences that begin with `prefix` tokens in common, by form."""
    random = np.random.default_rng(len(lengths))
    examples = []
    for i, length in enumerate(lengths):
        begin = np.full(prefix, i % forms)
        own = 10 + i + random.integers(0, 2, length) * len(lengths)
        tokens = np.r_[begin, own].astype(np.int32)
        examples.append(Example(tokens, max(1, len(tokens) - tail), i % forms, False))
    return pack(examples).layout


def allowed(layout: Layout):
    """(T, T): what each place may look at, from the meaning of segments."""
    mask = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for s in layout.segments:
        own = slice(s.start, s.stop)
        mask[own, own] = torch.ones(s.length, s.length, dtype=torch.bool).tril()
        mask[own, s.root : s.root + s.shared] = True
    return mask


def tensors(length):
    """Query, key, value, and what the gradient is taken of."""
    torch.manual_seed(0)
    shapes = (HEADS, EACH, length, SIZE), (HEADS, length, SIZE), (HEADS, length, SIZE)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return inputs, torch.randn(length, HEADS * EACH, SIZE, dtype=torch.float64)


def plain(layout, query, key, value, kept=1.0):
    """The formula."""
    scores = (query @ key[:, None].mT).masked_fill(~allowed(layout), -torch.inf)
    return (torch.softmax(scores, -1) * kept @ value[:, None]).flatten(0, 1).transpose(0, 1)


LAYOUTS = st.builds(
    layout_of,
    st.lists(st.integers(2, 2 * BLOCK + 5), min_size=1, max_size=7),
    st.integers(0, BLOCK + 3),
    st.integers(1, 2),
    st.integers(1, BLOCK),
)


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.sampled_from([0, 2**12, attention.KEPT]))
def test_blocks_give_outputs_and_gradients_of_the_formula(layout, kept):
    """Long sequences and short, shared prefixes and none, in any order; weights kept or not."""
    inputs, outer = tensors(layout.length)

    wanted = plain(layout, *inputs)
    with mock.patch.object(attention, "KEPT", kept):
        found = BlockAttention.apply(*inputs, layout.groups, 0.0)

    torch.testing.assert_close(found, wanted)
    gradients = torch.autograd.grad(wanted, inputs, outer)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, outer), gradients)


@settings(max_examples=60, deadline=None)
@given(LAYOUTS)
def test_places_that_are_read_are_all_computed(layout):
    """And the gradients of what is read are the same as if all were."""
    inputs, outer = tensors(layout.length)
    read = torch.from_numpy(layout.read)

    everything = BlockAttention.apply(*inputs, layout.groups, 0.0)[read]
    some = BlockAttention.apply(*inputs, layout.read_groups, 0.0)[read]

    torch.testing.assert_close(some, everything)
    gradients = torch.autograd.grad(everything, inputs, outer[read])
    torch.testing.assert_close(torch.autograd.grad(some, inputs, outer[read]), gradients)


def test_dropout_of_weights_is_the_same_in_both_directions(monkeypatch):
    """Given the mask that was drawn, output and gradients are those of the formula."""
    layout = layout_of([BLOCK // 2], 0, 1, 5)
    inputs, outer = tensors(layout.length)
    drawn = []
    rand_like = torch.rand_like
    monkeypatch.setattr(torch, "rand_like", lambda x: drawn.append(rand_like(x)) or drawn[-1])

    found = BlockAttention.apply(*inputs, layout.groups, 0.25)

    (kept,) = drawn  # `ge_` and `div_` have turned it into the mask
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    wanted = plain(layout, *inputs, kept=kept.unflatten(1, (EACH, -1)))
    torch.testing.assert_close(found, wanted)
    gradients = torch.autograd.grad(wanted, inputs, outer)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, outer), gradients)
