"""What makes training on a CPU fast: products in bfloat16, LoRA and norms in one piece.

PEFT's layer runs `W x + s · B A dropout(x)` as eight operations, and PyTorch's dropout alone costs
as much as `W x`. Here it is one operation with its own gradient, and q, k and v share a dropout
mask; so is the norm before it. On CPUs with bfloat16 instructions the products of these layers use
them (twice the speed). Sums, norms, attention and logits stay in float32. In evaluation mode
nothing changes: scores are computed by the model as it is.
"""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

_BITS = 2**16
_ROWS = 128
"""Rows of a product in bfloat16 are a multiple of this: oneDNN makes a kernel for every shape,
which takes longer than using it once, and keeps a thousand of them in memory."""


def speed_up(model: nn.Module, dropout: float, low_precision: bool) -> None:
    """Gives the layers of a LoRA model fast forwards for training mode on a CPU.

    Args:
        model: what PEFT made; LoRA layers over `nn.Linear`, frozen `nn.Linear` layers except
            the output head, and norms by the root mean square are changed.
        dropout: of the LoRA layers.
        low_precision: whether products in float32 are computed in bfloat16.
    """
    done = {model.get_output_embeddings()}  # type: ignore[operator]  # its logits stay exact
    for parent in list(model.modules()):
        drop = Dropout(dropout)  # one for the layers of an attention block
        for layer in parent.children():
            if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear:
                layer.forward = _lora_forward(layer, drop, low_precision)  # type: ignore[method-assign]
                done.add(layer.base_layer)
    for layer in model.modules():
        if layer in done or "forward" in vars(layer):
            continue
        if type(layer) is nn.Linear and not layer.weight.requires_grad:
            layer.forward = _linear_forward(layer, low_precision)  # type: ignore[method-assign,assignment]
        elif (epsilon := _root_mean_square(layer)) is not None:
            layer.forward = _norm_forward(layer, epsilon)


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
        self._result: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """(`_rows` of `x`, the same with numbers dropped, what that was multiplied by).

        Random bits are from PyTorch's random state.
        """
        if self._read is None or self._read() is not x or self._result is None:
            rows = _rows(x.detach(), dtype)
            mask = self._mask(rows) if self._least else None
            self._read = weakref.ref(x)
            self._result = rows, rows if mask is None else rows * mask, mask
        return self._result

    def _mask(self, like: Tensor) -> Tensor:
        source = np.random.SFC64(int(torch.randint(2**62, ())))  # 10 × PyTorch's speed
        bits = source.random_raw(-(-like.numel() // 4)).view(np.uint16)[: like.numel()]
        kept = np.multiply(bits >= self._least, self._scale, dtype=np.float32)
        return torch.from_numpy(kept).view(like.shape).to(like.dtype)


class FrozenProduct(torch.autograd.Function):
    """`W x + b` for frozen W, in W's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(…, in) → (…, out)."""
        ctx.weight = weight
        out = _like(x, _rows(x, weight.dtype) @ weight.T)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Only `x` gets a gradient."""
        g = _rows(outer[0], ctx.weight.dtype)
        return _like(outer[0], g @ ctx.weight), None, None


class LoraProduct(torch.autograd.Function):
    """`W x + b + s · B A d` for frozen W, where d is x after dropout; products in W's type."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (1, T, in)
        weight: Tensor,  # (out, in)
        bias: Tensor | None,
        a: Tensor,  # (r, in)
        b: Tensor,  # (out, r)
        scale: float,
        rows: Tensor,  # (≥ T, in), x
        dropped: Tensor,  # (≥ T, in), d
        mask: Tensor | None,
    ) -> Tensor:
        """(1, T, in) → (1, T, out)."""
        ctx.types = a.dtype, b.dtype
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        inner = dropped @ a.T  # (≥ T, r)
        out = _like(x, rows @ weight.T)
        flat = out.view(-1, out.shape[-1])
        if out.dtype == weight.dtype:
            flat.addmm_(inner, b.T, alpha=scale)
        else:  # what LoRA adds is too little for 8 bits beside W x
            flat.add_((inner @ b.T)[: len(flat)], alpha=scale)
        ctx.weight, ctx.scale = weight, scale
        ctx.save_for_backward(a, b, inner, dropped if ctx.needs_input_grad[3] else None, mask)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """`x`, A and B get gradients."""
        a, b, inner, dropped, mask = ctx.saved_tensors
        g = _rows(outer[0], ctx.weight.dtype)  # (≥ T, out)
        gb = (g @ b).mul_(ctx.scale)  # (≥ T, r)
        into_x = into_a = into_b = None
        if ctx.needs_input_grad[0]:
            into_x, through = g @ ctx.weight, gb @ a
            into_x = into_x.add_(through) if mask is None else into_x.addcmul_(through, mask)
            into_x = _like(outer[0], into_x)
        if ctx.needs_input_grad[3]:
            into_a = (gb.T @ dropped).to(ctx.types[0])
        if ctx.needs_input_grad[4]:
            into_b = (g.T @ inner).to(ctx.types[1]).mul_(ctx.scale)
        return into_x, None, None, into_a, into_b, None, None, None, None


class RootMeanSquare(torch.autograd.Function):
    """`w · x / √(mean x² + ε)` for frozen w (Zhang and Sennrich, 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """(…, d) → (…, d)."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out: Tensor = (x * inverse).mul_(weight)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Only `x` gets a gradient."""
        x, weight, inverse = ctx.saved_tensors
        g = outer[0] * weight
        along = (g * x).sum(-1, keepdim=True).mul_(inverse**3).div_(x.shape[-1])
        return g.mul_(inverse).addcmul_(x, along, value=-1), None, None


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
            x, weight, base.bias, a, b, layer.scaling[name], *drop(x, weight.dtype)
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


def _norm_forward(layer: nn.Module, epsilon: float) -> Callable[[Tensor], Tensor]:
    plain, weight = layer.forward, layer.weight

    def forward(x: Tensor) -> Tensor:
        if not layer.training or x.dtype != weight.dtype:
            return plain(x)  # type: ignore[no-any-return]
        out: Tensor = RootMeanSquare.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
        return out

    return forward


def _root_mean_square(layer: nn.Module) -> float | None:
    """The ε of a layer that computes what `RootMeanSquare` does; tried out, as models differ."""
    epsilon = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    weight = getattr(layer, "weight", None)
    if "RMSNorm" not in type(layer).__name__ or epsilon is None or weight is None:
        return None
    x = torch.linspace(-2, 3, weight.numel(), dtype=weight.dtype)
    ours = RootMeanSquare.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return None if weight.requires_grad or not torch.allclose(layer(x), ours) else epsilon


def _weight(layer: Any, low_precision: bool) -> Tensor:
    """The layer's weight in the type that products use, converted once."""
    weight: Tensor = layer.weight
    if not low_precision or weight.dtype != torch.float32:
        return weight
    if not hasattr(layer, "in_bfloat16"):
        layer.in_bfloat16 = weight.detach().bfloat16()
    low: Tensor = layer.in_bfloat16
    return low


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(…, n) → (rows, n) in another type, then with rows of zeros up to a multiple of `_ROWS`."""
    flat = x.flatten(0, -2)
    if flat.dtype == dtype:
        return flat
    rows = flat.new_empty(-(-len(flat) // _ROWS) * _ROWS, flat.shape[1], dtype=dtype)
    rows[: len(flat)] = flat
    rows[len(flat) :] = 0
    return rows


def _like(x: Tensor, rows: Tensor) -> Tensor:
    """(rows, m) → (…, m) in x's type, without what `_rows` of x appended."""
    return rows[: x.shape[:-1].numel()].to(x.dtype).view(*x.shape[:-1], -1)
