"""Dropout before LoRA's A, for CPUs, where PyTorch's own costs as much as the linear layer."""

import weakref

import numpy as np
import torch
from torch import Tensor, nn

_BITS = 2**16


class CpuDropout(nn.Module):
    """Sets a share of its input to zero and scales the rest, from 16 random bits a number.

    q, k and v read the same tensor; layers that share this module then share the mask, too.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._least = np.uint16(round(share * _BITS))
        self._scale = np.float32(_BITS / (_BITS - int(self._least)))
        self._masked: weakref.ref[Tensor] | None = None
        self._mask = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Drops in training mode, from PyTorch's random state; else gives `x` back."""
        if not self.training:
            return x
        if self._masked is None or self._masked() is not x:
            self._masked, self._mask = weakref.ref(x), self._draw(x)
        return x * self._mask

    def _draw(self, x: Tensor) -> Tensor:
        source = np.random.SFC64(int(torch.randint(2**62, ())))  # 10 × the speed of PyTorch's
        bits = source.random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
        kept = np.multiply(bits >= self._least, self._scale, dtype=np.float32)
        return torch.from_numpy(kept).view(x.shape).to(x.dtype)


def speed_up_dropout(model: nn.Module, share: float) -> None:
    """Puts one `CpuDropout` into all LoRA layers of a module, instead of one `nn.Dropout` each."""
    for parent in model.modules():
        ours = CpuDropout(share)
        for layer in parent.children():
            dropouts = getattr(layer, "lora_dropout", {})
            for name, dropout in dropouts.items():
                if isinstance(dropout, nn.Dropout):
                    dropouts[name] = ours
