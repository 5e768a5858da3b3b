"""Tasks whose examples are sequences of tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from graphattn.errors import ConfigError
from graphattn.training.task import GraphTask

__all__ = ["BitsPerCharacter", "LanguageModelling"]


class BitsPerCharacter(Metric):
    """Mean cross-entropy in bits; takes scores ``[N, C]`` and targets long ``[N]``, -100 for none."""

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self.total += F.cross_entropy(scores, target, reduction="sum").double()
        self.count += (target >= 0).sum()

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset."""
        return self.total / math.log(2) / self.count.clamp(min=1)


class LanguageModelling(GraphTask):
    """The token after each. A batch is ``{"x": int64 [B, N], "y": int64 [B, N]}``, -100 where there is no target.

    The metric is bits per token: per character where tokens are characters.

    Args:
        model: Called with the tokens alone; returns scores ``[B, N, vocab]`` (:class:`CausalTransformer
            <graphattn.models.sequence.CausalTransformer>`).
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr``, ``capture`` of
            :class:`~graphattn.training.GraphTask`.
    """

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.add_metrics("bits_per_character", "min", {"bits_per_character": BitsPerCharacter})

    def forward(self, batch: Any) -> Tensor:
        """The model's output on the tokens of a batch."""
        if not isinstance(batch, dict) or not {"x", "y"} <= set(batch):
            got = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ConfigError(f"LanguageModelling needs batches with x and y (TextDataModule), got {got}")
        return self.model(batch["x"])

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All tokens."""
        if output.dim() != 3 or output.shape[:2] != batch["y"].shape:
            raise ConfigError(
                f"the model must return scores [{', '.join(map(str, batch['y'].shape))}, vocab], got "
                f"{list(output.shape)}"
            )
        return output.flatten(0, 1), batch["y"].flatten()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy in nats."""
        return F.cross_entropy(prediction, target)
