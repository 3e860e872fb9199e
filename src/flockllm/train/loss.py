"""The loss of a micro-batch: packed where the model allows it, else padded."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flockllm.train import attention
from flockllm.train.data import Example
from flockllm.train.last import LastLayer
from flockllm.train.packing import Row, pack

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
    model.config._attn_implementation = attention.NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def can_pack(model: Any) -> bool:
    """Whether the packed way gives what the model gives for each sequence alone.

    Tried out rather than looked up, because what breaks it is many things: windows, soft caps,
    state that runs along the row, positions that are not handed through, scaled logits.
    """
    try:
        _compare(model, read=99)
    except _BREAKS as e:
        log.info("%s is trained with padding: %s", type(model).__name__, e)
        return False
    return True


def can_narrow(model: Any) -> bool:
    """Whether that stays true when the last layer skips what is not read; likewise tried out."""
    last = None
    try:
        last = LastLayer(model)
        _compare(model, read=2)
    except _BREAKS as e:
        log.info("%s computes all of its last layer: %s", type(model).__name__, e)
        return False
    finally:
        if last:
            last.remove()
    return True


_BREAKS = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, IndexError)


def _compare(model: Any, read: int) -> None:
    """Raises unless the last `read` places of some sequences, or all, have the right logits."""
    random = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    head = random.integers(0, vocabulary, 5)
    probes = []
    for n in (9, 23, 4):
        tokens = np.r_[head, random.integers(0, vocabulary, n)].astype(np.int32)
        probes.append(Example(tokens, max(1, len(tokens) - read), 0, False))
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
                places = row.layout.read
                places = places[(places >= segment.start) & (places < segment.stop)]
                alone = model(input_ids=tokens, use_cache=False).logits[0]
                alone = alone[places - segment.start + segment.shared]
                if (together[places] - alone).norm() > tolerance * alone.norm():
                    raise NotImplementedError("packed sequences disturb each other")
    finally:
        model.train(training)


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
            target, weighted = targets[part, None], weights[part, None].to(exact)
            logits.sub_(logits.amax(-1, keepdim=True))
            right = logits.gather(-1, target)
            logits.exp_()
            normal = logits.sum(-1, keepdim=True)
            total += (weighted * (normal.log() - right)).sum()
            if gradient is not None:
                logits.mul_(weighted / normal)  # now the probabilities, weighted
                logits.scatter_add_(-1, target, -weighted)
                gradient[part] = logits.to(hidden.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None
