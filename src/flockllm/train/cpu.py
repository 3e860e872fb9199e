"""What makes training on a CPU fast: frozen products in bfloat16, LoRA in one piece.

PEFT's layer runs `W x + s · B A dropout(x)` as eight operations, and PyTorch's dropout alone costs
as much as `W x`. Here it is one operation with its own gradient, q, k and v share a dropout mask,
and on CPUs with bfloat16 instructions the products with frozen weights use them (twice the speed).
LoRA's own products, sums, norms and attention stay in float32. In evaluation mode nothing changes:
scores are computed by the model as it is.
"""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

_BITS = 2**16


def speed_up(model: nn.Module, dropout: float, low_precision: bool) -> None:
    """Gives the layers of a LoRA model fast forwards for training mode on a CPU.

    Args:
        model: what PEFT made; LoRA layers over `nn.Linear`, and frozen `nn.Linear` layers except
            the output head, are changed.
        dropout: of the LoRA layers.
        low_precision: whether products with frozen float32 weights are computed in bfloat16.
    """
    done = {model.get_output_embeddings()}  # type: ignore[operator]  # its logits stay exact
    for parent in list(model.modules()):
        drop = Dropout(dropout)  # one for the layers of an attention block
        for layer in parent.children():
            if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear:
                layer.forward = _lora_forward(layer, drop, low_precision)  # type: ignore[method-assign]
                done.add(layer.base_layer)
    for layer in model.modules():
        if type(layer) is not nn.Linear or layer in done or layer.weight.requires_grad:
            continue
        if "forward" not in vars(layer):
            layer.forward = _linear_forward(layer, low_precision)  # type: ignore[method-assign,assignment]


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


class Dropout:
    """Sets a share of numbers to zero and scales the rest, from 16 random bits each.

    Layers that read the same tensor get the same result.
    """

    def __init__(self, share: float) -> None:
        self._least = np.uint16(round(share * _BITS))
        self._scale = np.float32(_BITS / (_BITS - int(self._least)))
        self._read: weakref.ref[Tensor] | None = None
        self._result: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(`x` with numbers dropped, what it was multiplied by), from PyTorch's random state."""
        if not self._least:
            return x.detach(), None
        if self._read is None or self._read() is not x or self._result is None:
            source = np.random.SFC64(int(torch.randint(2**62, ())))  # 10 × PyTorch's speed
            bits = source.random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
            kept = np.multiply(bits >= self._least, self._scale, dtype=np.float32)
            mask = torch.from_numpy(kept).view(x.shape).to(x.dtype)
            self._read, self._result = weakref.ref(x), (x.detach() * mask, mask)
        return self._result


class FrozenProduct(torch.autograd.Function):
    """`W x + b` for frozen W, in W's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(…, in) → (…, out)."""
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Only `x` gets a gradient."""
        return _gradient(outer[0], ctx.weight), None, None


class LoraProduct(torch.autograd.Function):
    """`W x + b + s · B A d` for frozen W, where d is x after dropout."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (1, T, in)
        weight: Tensor,  # (out, in)
        bias: Tensor | None,
        a: Tensor,  # (r, in)
        b: Tensor,  # (out, r)
        scale: float,
        dropped: Tensor,  # (1, T, in)
        mask: Tensor | None,
    ) -> Tensor:
        """(1, T, in) → (1, T, out)."""
        inner = dropped.flatten(0, -2) @ a.T  # (T, r)
        out = _product(x, weight, bias)
        out.view(-1, out.shape[-1]).addmm_(inner, b.T, alpha=scale)
        ctx.weight, ctx.scale = weight, scale
        ctx.save_for_backward(a, b, inner, dropped, mask)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """`x`, A and B get gradients."""
        a, b, inner, dropped, mask = ctx.saved_tensors
        g = outer[0].flatten(0, -2)  # (T, out)
        gb = ctx.scale * (g @ b)  # (T, r)
        into_x = into_a = into_b = None
        if ctx.needs_input_grad[0]:
            into_x = _gradient(outer[0], ctx.weight)
            through = (gb @ a).view(into_x.shape)
            into_x = into_x.add_(through) if mask is None else into_x.addcmul_(through, mask)
        if ctx.needs_input_grad[3]:
            into_a = gb.T @ dropped.flatten(0, -2)
        if ctx.needs_input_grad[4]:
            into_b = (g.T @ inner).mul_(ctx.scale)
        return into_x, None, None, into_a, into_b, None, None, None


def _lora_forward(layer: Any, drop: Dropout, low_precision: bool) -> Callable[..., Tensor]:
    plain, base = layer.forward, layer.base_layer

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (name,) = layer.active_adapters
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        usual = layer.training and not layer.disable_adapters and not layer.lora_variant
        if not usual or args or kwargs or x.dtype != a.dtype:
            return plain(x, *args, **kwargs)  # type: ignore[no-any-return]
        weight = _weight(base, low_precision)
        out: Tensor = LoraProduct.apply(  # type: ignore[no-untyped-call]
            x, weight, base.bias, a, b, layer.scaling[name], *drop(x)
        )
        return out

    return forward


def _linear_forward(layer: nn.Linear, low_precision: bool) -> Callable[[Tensor], Tensor]:
    plain = layer.forward

    def forward(x: Tensor) -> Tensor:
        if not layer.training or x.dtype != layer.weight.dtype:
            return plain(x)
        weight = _weight(layer, low_precision)
        out: Tensor = FrozenProduct.apply(x, weight, layer.bias)  # type: ignore[no-untyped-call]
        return out

    return forward


def _weight(layer: Any, low_precision: bool) -> Tensor:
    """The layer's weight in the type that products use, converted once."""
    weight: Tensor = layer.weight
    if not low_precision or weight.dtype != torch.float32:
        return weight
    if not hasattr(layer, "in_bfloat16"):
        layer.in_bfloat16 = weight.detach().bfloat16()
    low: Tensor = layer.in_bfloat16
    return low


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W^T + b` in x's type, multiplied in W's."""
    if x.dtype == weight.dtype:
        return F.linear(x, weight, bias)
    out = F.linear(x.to(weight.dtype), weight).to(x.dtype)
    return out if bias is None else out.add_(bias)


def _gradient(outer: Tensor, weight: Tensor) -> Tensor:
    """`g W` in g's type, multiplied in W's."""
    return (outer.to(weight.dtype) @ weight).to(outer.dtype)
