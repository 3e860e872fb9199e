"""Sequences that one model advances together, a token each per step.

Continuous batching (Orca, Yu et al., OSDI 2022): sequences join and leave between any two steps.
They are of any length (shorter ones begin with padding that attention does not see) and each
row has an adapter of its own, or none, on the same weights.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from flockllm.host.switch import Switch


class Batch:
    """Rows with their keys and values; `join` adds some, `step` advances all, `keep` selects."""

    def __init__(self, model: Any, switch: Switch) -> None:
        self._model, self._switch = model, switch
        known = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.clear()

    def __len__(self) -> int:
        return len(self._adapters)

    def clear(self) -> None:
        """Drops all rows."""
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._model.device)
        self._adapters: list[int] = []

    def join(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int]) -> torch.Tensor:
        """Reads new rows' prompts and appends the rows; returns their next logits, [new, vocab]."""
        width = max(map(len, prompts))
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        mask = torch.tensor(seen, device=self._mask.device)
        cache = DynamicCache()
        logits = self._forward(
            torch.tensor(padded, device=mask.device),
            mask,
            (mask.cumsum(1) - 1).clamp(min=0),
            cache,
            adapters,
        )
        if not self._layers(cache):
            raise ValueError("it fills no cache of keys and values")
        self._append(cache, mask)
        self._adapters += adapters
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Appends one token to each row; returns the logits of the next, [rows, vocab]."""
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        positions = self._mask.sum(1, keepdim=True)
        self._mask = pad(self._mask, (0, 1), value=1)
        return self._forward(ids, self._mask, positions, self._cache, self._adapters)

    def keep(self, rows: Sequence[int]) -> None:
        """Makes the batch of these rows, in this order; a row may be taken more than once."""
        if list(rows) == list(range(len(self))):
            return
        if not rows:
            return self.clear()
        index = torch.tensor(rows, device=self._mask.device)
        mask = self._mask[index]
        unused = int(mask.any(0).long().argmax())  # columns that were of rows now gone
        self._mask = mask[:, unused:]
        self._adapters = [self._adapters[row] for row in rows]
        for layer in self._layers(self._cache):
            layer.keys = layer.keys[index][..., unused:, :]
            layer.values = layer.values[index][..., unused:, :]

    def _append(self, cache: DynamicCache, mask: torch.Tensor) -> None:
        if not len(self):
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_widen(m, width, 1) for m in (self._mask, mask)])
        for layer, new in zip(self._layers(self._cache), self._layers(cache), strict=True):
            layer.keys = torch.cat([_widen(t, width, 2) for t in (layer.keys, new.keys)])
            layer.values = torch.cat([_widen(t, width, 2) for t in (layer.values, new.values)])

    @staticmethod
    def _layers(cache: Any) -> list[Any]:
        return [layer for layer in cache.layers if layer.is_initialized]

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache,
        adapters: Sequence[int],
    ) -> torch.Tensor:
        options: dict[str, Any] = dict(self._options)
        if self._takes_positions:
            options["position_ids"] = positions
        self._switch.set(adapters, ids.device)
        output = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _widen(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Pads dimension `dim` in front, with zeros, to `width`."""
    front = width - tensor.shape[dim]
    return pad(tensor, (0, 0) * (tensor.dim() - 1 - dim) + (front, 0)) if front else tensor
