"""Tasks whose examples are images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.metrics import Accuracy
from graphattn.training.task import GraphTask
from graphattn.training.tasks.checks import check_classes

__all__ = ["ImageClassification"]


class ImageClassification(GraphTask):
    """One label for each image. A batch is ``{"x": float [B, C, H, W], "y": int64 [B]}``.

    Args:
        model: Called with the images alone; returns class scores ``[B, num_classes]``.
        label_smoothing: Of the training loss, 0 to 1.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr``, ``capture`` of
            :class:`~graphattn.training.GraphTask`.

    Raises:
        ArgumentError: If ``label_smoothing`` is out of range.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ArgumentError(f"label_smoothing must be in 0..1, got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.add_metrics("accuracy", "max", {"accuracy": Accuracy})

    def forward(self, batch: Any) -> Tensor:
        """The model's output on the images of a batch."""
        if not isinstance(batch, dict) or not {"x", "y"} <= set(batch):
            got = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ConfigError(f"ImageClassification needs batches with x and y (ImageDataModule), got {got}")
        return self.model(batch["x"])

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All images."""
        return output, batch["y"]

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; labels are smoothed in training only."""
        check_classes(prediction, target)
        return F.cross_entropy(prediction, target, label_smoothing=self.label_smoothing if self.training else 0.0)
