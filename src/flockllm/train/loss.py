"""The loss of a micro-batch: packed where the model allows it, else padded."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flockllm.train.data import Example
from flockllm.train.packing import ATTENTION, Row, pack

log = logging.getLogger(__name__)

LOGITS = 2**22
"""How many logits exist at a time."""


def packed_loss(model: Any, row: Row) -> Tensor:
    """Sum of -log p over all predictions of a row. `model` is a causal language model."""
    hidden = _hidden(model, row)
    places, targets, weights = (  # the last layers may be on another GPU than the first
        x.to(hidden.device) for x in (row.places, row.targets, row.weights)
    )
    hidden = hidden[places]  # (N, d)
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and not head.weight.requires_grad:
        loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, weights
        )
        return loss
    losses = F.cross_entropy(head(hidden).float(), targets, reduction="none")
    return (losses * weights).sum()


def padded_loss(model: Any, examples: Sequence[Example]) -> Tensor:
    """The same sum the plain way: one padded batch, a mask, all logits."""
    width = max(len(example.tokens) for example in examples)
    tokens = np.zeros((len(examples), width), np.int64)  # (B, T)
    labels = np.full_like(tokens, -100)
    mask = np.zeros_like(tokens)
    for i, example in enumerate(examples):
        tokens[i, : len(example.tokens)] = example.tokens
        labels[i, example.start : len(example.tokens)] = example.tokens[example.start :]
        mask[i, : len(example.tokens)] = 1
    device = model.device
    logits = model(
        input_ids=torch.from_numpy(tokens).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        use_cache=False,
    ).logits  # (B, T, V)
    logits = logits[:, :-1].flatten(0, 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    wanted = torch.from_numpy(labels[:, 1:].reshape(-1)).to(logits.device)
    return F.cross_entropy(logits, wanted, reduction="sum")


@contextmanager
def packed_attention_on(model: Any) -> Iterator[None]:
    """Within, the model's attention is `packed_attention`; a backward pass belongs inside too."""
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before


def can_pack(model: Any) -> bool:
    """Whether the packed way gives what the model gives for each sequence alone.

    Tried out rather than looked up, because what breaks it is many things: windows, soft caps,
    state that runs along the row, positions that are not handed through, scaled logits.
    """
    random = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    head = random.integers(0, vocabulary, 5)
    probes = [
        Example(np.r_[head, random.integers(0, vocabulary, n)].astype(np.int32), 1, 0, False)
        for n in (9, 23, 4)
    ]
    exact = model.dtype in (torch.float32, torch.float64)
    exact = exact and not getattr(model, "is_quantized", False)
    tolerance = 1e-4 if exact else 5e-2  # 8-bit layers round by what else is in the row
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            row = pack(probes, model.device)
            with packed_attention_on(model):
                together = model.get_output_embeddings()(_hidden(model, row))  # (T, V)
            for probe, segment in zip(probes, row.layout.segments, strict=True):
                tokens = torch.from_numpy(probe.tokens).long()[None].to(model.device)
                alone = model(input_ids=tokens, use_cache=False).logits[0, segment.shared :]
                found = together[segment.start : segment.start + segment.length]
                if (found - alone).norm() > tolerance * alone.norm():
                    raise NotImplementedError("packed sequences disturb each other")
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as e:
        log.info("%s is trained with padding: %s", type(model).__name__, e)
        return False
    finally:
        model.train(training)
    return True


def _hidden(model: Any, row: Row) -> Tensor:
    """Last hidden states of a row, (T, d)."""
    hidden: Tensor = model.base_model(
        input_ids=row.tokens, position_ids=row.positions, use_cache=False, layout=row.layout
    ).last_hidden_state[0]
    return hidden


class _LinearCrossEntropy(torch.autograd.Function):
    """-log softmax(W h + b)[target], weighted and summed, for a frozen W.

    The gradient of h is computed together with the loss, chunk by chunk, so that never more than
    `LOGITS` logits exist; only the gradient, (N, d), is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, d)
        weight: Tensor,  # (V, d)
        bias: Tensor | None,
        targets: Tensor,  # (N,)
        weights: Tensor,  # (N,)
    ) -> Tensor:
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = max(1, LOGITS // weight.shape[0])
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            logits = F.linear(hidden[part], weight, bias).to(exact)
            target = targets[part, None]
            weighted = weights[part].to(exact)
            normal = logits.logsumexp(-1)
            total += (weighted * (normal - logits.gather(-1, target)[:, 0])).sum()
            if gradient is not None:
                logits.sub_(normal[:, None]).exp_()  # now the probabilities
                logits.scatter_add_(-1, target, torch.full_like(normal[:, None], -1))
                logits.mul_(weighted[:, None])
                gradient[part] = logits.to(hidden.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None
