"""What a participant keeps warm: base, tokens and LoRA layers; adapters are swapped in place."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flockllm.errors import ModelError
from flockllm.task import Lora, Training
from flockllm.train.base import Base, Floats
from flockllm.train.data import Example
from flockllm.train.loss import packed_attention_on, packed_loss, padded_loss
from flockllm.train.packing import Row, micro_batches, pack

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""(optimizer steps done, of how many, mean loss per token of the last one)."""

MICRO_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of a micro-batch: bounds memory, changes nothing."""


class Trainer:
    """Trains and scores adapters on one participant's data."""

    def __init__(
        self,
        base: Base,
        lora: Lora,
        training: Training,
        train: Sequence[Example],
        heldout: Sequence[Example],
        *,
        tokens: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        """Puts LoRA layers into `base` and lays the held-out examples out for scoring.

        Args:
            base: may be shared by trainers that take turns.
            lora: shape of the adapter.
            training: the recipe.
            train: what `train` trains on; examples with nothing to learn are left out.
            heldout: what `loss` measures on, likewise.
            tokens: tokens of a micro-batch; more is faster on a GPU and needs more memory.
            checkpointing: compute activations twice instead of keeping them.

        Raises:
            ModelError: the base model has no layers of these names.
        """
        self.base, self.lora, self.training = base, lora, training
        self.train_examples = [example for example in train if example.learned]
        heldout = [example for example in heldout if example.learned]
        base.adapt(lora)
        if checkpointing:
            new = getattr(base.model, "activation_checkpointing_enable", None)
            enable = new or base.model.gradient_checkpointing_enable  # its older name
            enable({"use_reentrant": False})
        self.budget = tokens or MICRO_TOKENS.get(base.device.type, 1024)
        self._heldout = [self._batch(group) for group in micro_batches(heldout, self.budget)]
        self._heldout_tokens = sum(example.learned for example in heldout)

    def train(
        self,
        start: Floats,
        *,
        seed: bytes | int,
        progress: Progress | None = None,
        rate: float = 1.0,
        proximal: float = 0.0,
        factors: str = "AB",
    ) -> dict[str, NDArray[np.float32]]:
        """One participant's local training in one round; the same seed gives the same adapter.

        Args:
            start: the global adapter.
            seed: of the order of records and of dropout.
            progress: called after every optimizer step.
            rate: factor on the recipe's learning rate, for schedules over rounds.
            proximal: μ of FedProx (Li et al., 2020), which adds μ/2 · ‖adapter - start‖².
            factors: of the product B A, which ones learn: `AB`, `A` or `B`.

        Raises:
            ModelError: `start` does not fit, there is nothing to train on, or the loss is no
                longer a number.
        """
        if not self.train_examples:
            raise ModelError("nothing to train on: no record has a response within the cutoff")
        recipe = self.training
        model = self._with(start)
        parameters = [
            parameter
            for name, parameter in self.base.parameters.items()
            if any(f".lora_{factor}." in name for factor in factors)
        ]
        origin = [parameter.detach().clone() for parameter in parameters] if proximal else []
        optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.0, fused=True)
        model.train()
        with self._deterministic(seed) as random, self._only(parameters):
            steps = list(self._steps(random))
            for step, batch in enumerate(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * learning_rate(recipe, step, len(steps))
                labels = sum(example.learned for example in batch)
                total = 0.0
                for micro in micro_batches(batch, self.budget):
                    with self._attention():
                        loss = self._loss(self._batch(micro)) / labels
                        loss.backward()  # micro-batches add up to the gradient of one batch
                    total += loss.item()
                for parameter, origin_ in zip(parameters, origin, strict=False):
                    parameter.grad.add_(parameter.detach() - origin_, alpha=proximal)  # type: ignore[union-attr]
                if not math.isfinite(total):
                    raise ModelError(f"training diverged at step {step}: lower training.lr")
                torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if progress:
                    progress(step + 1, len(steps), total)
        return self.base.adapter()

    def loss(self, adapter: Floats | None) -> float:
        """Mean loss per token on the held-out examples; None: of the base model alone.

        The same adapter gives the same bits each time: same batches, same kernels.

        Raises:
            ModelError: the adapter does not fit, or there is nothing to score on.
        """
        if not self._heldout:
            raise ModelError("nothing to score on: no held-out record has a response in the cutoff")
        model = self.base.adapt(self.lora)
        if adapter is not None:
            self.base.set_adapter(adapter)
        model.eval()
        alone = model.disable_adapter() if adapter is None else nullcontext()
        with torch.inference_mode(), self._attention(), alone:
            total = sum(self._loss(batch).item() for batch in self._heldout)
        return total / self._heldout_tokens

    def losses(self, current: Floats, deltas: Iterable[Floats]) -> list[float]:
        """Loss of `current + delta` for each delta."""
        return [
            self.loss({name: tensor + delta[name] for name, tensor in current.items()})
            for delta in deltas
        ]

    @contextmanager
    def _only(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Gradients for these tensors of the adapter and no others."""
        rest = [p for p in self.base.parameters.values() if all(p is not q for q in parameters)]
        for parameter in rest:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in rest:
                parameter.requires_grad_(True)

    def _with(self, adapter: Floats) -> Any:
        model = self.base.adapt(self.lora)
        self.base.set_adapter(adapter)
        return model

    def _steps(self, random: np.random.Generator) -> Iterator[list[Example]]:
        """Batches of all epochs: every record once per epoch, in a new order."""
        batch = self.training.batch
        for _ in range(self.training.epochs):
            order = random.permutation(len(self.train_examples))
            order = order[: self.training.max_records or None]
            for at in range(0, len(order), batch):
                yield [self.train_examples[i] for i in order[at : at + batch]]

    def _batch(self, examples: list[Example]) -> Row | list[Example]:
        return pack(examples, self.base.device) if self.base.packs else examples

    def _loss(self, batch: Row | list[Example]) -> Tensor:
        model = self.base.model
        with self._autocast():
            return (
                packed_loss(model, batch) if isinstance(batch, Row) else padded_loss(model, batch)
            )

    def _attention(self) -> Any:
        return packed_attention_on(self.base.model) if self.base.packs else nullcontext()

    def _autocast(self) -> Any:
        """LoRA tensors are float32; on a GPU their products run in the base model's type."""
        device = self.base.device.type
        return nullcontext() if device == "cpu" else torch.autocast(device, torch.bfloat16)

    @contextmanager
    def _deterministic(self, seed: bytes | int) -> Iterator[np.random.Generator]:
        raw = seed if isinstance(seed, bytes) else str(seed).encode()
        number = int.from_bytes(hashlib.sha256(raw).digest()[:8])
        devices = [self.base.device] if self.base.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(number)
            yield np.random.default_rng(number)


def learning_rate(recipe: Training, step: int, steps: int) -> float:
    """Learning rate of a step: a linear rise over `warmup`, then the recipe's schedule."""
    rising = math.ceil(recipe.warmup * steps)
    if step < rising:
        return recipe.lr * (step + 1) / rising
    left = 1 - (step - rising) / max(1, steps - rising)
    factors = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
    }
    return recipe.lr * factors[recipe.schedule]
