"""Learning-rate schedules, in epochs."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from graphattn.errors import ArgumentError, ConfigError

__all__ = ["ReduceLROnPlateau", "WarmupCosine"]


class WarmupCosine(LRScheduler):
    r"""Linear warm-up, then half a cosine down to a floor, one step an epoch.

    .. math:: f(e) = \frac{e + 1}{W + 1} \; (e < W), \qquad
              f(e) = f_{min} + (1 - f_{min}) \frac{1 + \cos(\pi (e - W) / (E - W))}{2} \; (e \ge W)

    Args:
        optimizer: The optimizer whose learning rates are multiplied by :math:`f`.
        warmup_epochs: :math:`W`.
        max_epochs: :math:`E`; ``None`` takes the trainer's ``max_epochs``.
        min_factor: :math:`f_{min}`, the factor from epoch :math:`E` on.
        last_epoch: Index of the last epoch when resuming, ``-1`` to start.

    Raises:
        ArgumentError: If the numbers are out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: int = 5,
        max_epochs: int | None = None,
        min_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if warmup_epochs < 0:
            raise ArgumentError(f"warmup_epochs must be at least 0, got {warmup_epochs}")
        if not 0 <= min_factor <= 1:
            raise ArgumentError(f"min_factor must lie in [0, 1], got {min_factor}")
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.min_factor = min_factor
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        """The factor of one epoch (counted from 0)."""
        if epoch < self.warmup_epochs:
            return (epoch + 1) / (self.warmup_epochs + 1)
        if self.max_epochs is None:
            if epoch == 0:  # asked for at construction, before the task has filled in the trainer's max_epochs
                return 1.0
            raise ConfigError("WarmupCosine needs max_epochs; pass it, or set trainer.max_epochs to a positive number")
        length = max(1, self.max_epochs - self.warmup_epochs)
        progress = min(1.0, (epoch - self.warmup_epochs) / length)
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * progress)) / 2

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state. The end is the one that is asked for now: a run may be resumed to train for longer."""
        end = state_dict["max_epochs"] if self.max_epochs is None else self.max_epochs
        super().load_state_dict({**state_dict, "max_epochs": end})
        if end != state_dict["max_epochs"]:
            for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = rate

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each parameter group for the current epoch."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
