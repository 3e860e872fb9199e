"""The last layer computes only what the loss reads.

Behind its keys and values nothing of the last layer mixes places any more, so queries, outputs and
the MLP of places that predict nothing need not be computed: mostly prompts, and the rest of a batch
when updates are scored. The layer itself is left as it is; hooks narrow what goes into its parts
and widen what comes out, with zeros where nobody looks.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flockllm.train.attention import Layout

WORTH = 0.9
"""Where more of a row than this is read, nothing is narrowed."""


class LastLayer:
    """Hooks in a model's last layer, until `remove`."""

    def __init__(self, model: Any) -> None:
        """Finds the parts by the names that most models use.

        Raises:
            AttributeError: this model calls them something else.
        """
        layer = model.base_model.layers[-1]
        parts = layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp
        self._attention = layer.self_attn
        self._read: Tensor | None = None
        self._length = 0
        self._hooks = [layer.register_forward_pre_hook(self._look, with_kwargs=True)]
        for part in parts:
            self._hooks += [
                part.register_forward_pre_hook(self._narrow),
                part.register_forward_hook(self._widen),
            ]

    def remove(self) -> None:
        """Leaves the layer as it was."""
        self._attention.only_read = False
        for hook in self._hooks:
            hook.remove()

    def _look(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        layout: Layout | None = kwargs.get("layout")
        self._read = None
        if layout and len(layout.read) < WORTH * layout.length:
            device = next(layer.parameters()).device
            self._read, self._length = torch.from_numpy(layout.read).to(device), layout.length
        self._attention.only_read = self._read is not None

    def _narrow(self, part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._read is None:
            return None
        return args[0].index_select(1, self._read), *args[1:]

    def _widen(self, part: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        if self._read is None:
            return None
        wide = out.new_zeros(1, self._length, out.shape[-1])
        return wide.index_copy(1, self._read, out)
