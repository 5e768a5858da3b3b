"""Errors of numbers as ``torchmetrics`` modules, in the target's unit."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["RegressionError"]


class RegressionError(Metric):
    """Mean absolute or root mean square error of each target, averaged over targets (OGB's rule); NaN is skipped.

    Args:
        name: ``"mae"`` or ``"rmse"``.
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.squared = name == "rmse"
        # Scalars until the first batch tells the number of targets.
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``[B, T]`` or ``[B]``."""
        labelled = ~target.isnan()
        error = (prediction.detach() - target).abs()
        error = (error.square() if self.squared else error).where(labelled, 0.0)
        self.total = self.total + error.sum(0)
        self.count = self.count + labelled.sum(0)

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset; NaN where a target was never labelled."""
        means = self.total / self.count
        return (means.sqrt() if self.squared else means).mean()
