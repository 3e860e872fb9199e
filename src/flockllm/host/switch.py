"""Several adapters on one copy of the weights, chosen anew for each row of a batch.

All adapters' A matrices of a layer lie on top of each other, their B matrices side by side:

    y = W x + B (g ∘ A x)        A [R, in], B [out, R], g [rows, R]

with R the ranks' sum and g an adapter's scaling where a row uses it, 0 elsewhere. So a mixed
batch costs two small products a layer, however many adapters there are, and rows without an
adapter are the base model's own. PEFT's mixed batches compute the same in 3 × the time on a
small model (hooks on each call, and an index per adapter and layer).
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import linear

from flockllm.errors import ModelError


class Switch:
    """Which adapter each row of the next batch uses; every layer looks here."""

    rows: torch.Tensor | None = None
    """Adapter numbers, [rows], 0 for none; None where no row has one."""

    def set(self, adapters: Sequence[int], device: torch.device) -> None:
        """One adapter number for each row."""
        self.rows = torch.tensor(adapters, device=device) if any(adapters) else None


class Switched(nn.Module):
    """A layer with all its adapters."""

    a: torch.Tensor
    b: torch.Tensor
    gains: torch.Tensor
    """[1 + adapters, R]: an adapter's scaling on its own ranks; the first row is zero."""

    def __init__(self, layer: Any, adapters: Sequence[str], switch: Switch) -> None:
        super().__init__()
        self.base = layer.base_layer
        self._switch = switch
        has = [name for name in adapters if name in layer.lora_A]
        a = torch.cat([layer.lora_A[name].weight.detach() for name in has])
        b = torch.cat([layer.lora_B[name].weight.detach() for name in has], dim=1)
        gains = torch.zeros(1 + len(adapters), len(a), dtype=a.dtype, device=a.device)
        start = 0
        for name in has:
            end = start + layer.lora_A[name].weight.shape[0]
            gains[1 + adapters.index(name), start:end] = layer.scaling[name]
            start = end
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.register_buffer("gains", gains)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, in] → [rows, tokens, out]."""
        y: torch.Tensor = self.base(x)
        rows = self._switch.rows
        if rows is None:
            return y
        if x.dim() != 3 or len(x) != len(rows):
            raise ModelError("this model's layers do not see one sequence per row; use vLLM")
        h = linear(x.to(self.a.dtype), self.a) * self.gains[rows, None]
        return y + linear(h, self.b).to(y.dtype)


def switched(peft: Any, adapters: Sequence[str]) -> tuple[Any, Switch]:
    """The base model of a PEFT model, its layers replaced; adapter `i` gets the number `i + 1`.

    Raises:
        ModelError: an adapter is of a kind that this does not compute.
    """
    switch, layers = Switch(), {}
    for name, layer in peft.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            layers[name] = _switched(name, layer, adapters, switch)
    model = peft.unload()
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model, switch


def _switched(name: str, layer: Any, adapters: Sequence[str], switch: Switch) -> Switched:
    plain = not layer.lora_embedding_A and not layer.lora_variant
    biased = any(b.bias is not None for b in layer.lora_B.values())
    if not plain or biased or not layer.lora_A:
        raise ModelError(f"the adapter of {name} is not plain LoRA on a linear layer")
    return Switched(layer, adapters, switch)
