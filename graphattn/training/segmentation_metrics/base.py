"""What the figures share: checked inputs, and the mean over images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from graphattn.errors import ArgumentError, ArgumentTypeError

__all__ = ["ImageMean", "binary", "check_maps"]


def check_maps(prediction: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A saliency map in float32 or float64 and a bool mask, both ``[B, H, W]`` (``[B, 1, H, W]`` is taken, too).

    Raises:
        ArgumentError: If shapes do not fit.
        ArgumentTypeError: If the prediction is not floating.
    """
    if prediction.dim() == 4 and prediction.shape[1] == 1:
        prediction = prediction.squeeze(1)
    if mask.dim() == 4 and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    if prediction.dim() != 3 or prediction.shape != mask.shape:
        raise ArgumentError(
            "prediction and mask must both be [B, H, W] or [B, 1, H, W], "
            f"got {list(prediction.shape)} and {list(mask.shape)}"
        )
    if not prediction.is_floating_point():
        raise ArgumentTypeError(f"prediction must be a floating tensor of values in 0..1, got {prediction.dtype}")
    prediction = prediction.detach()
    if prediction.dtype != torch.float64:
        prediction = prediction.float()
    return prediction, mask != 0 if mask.dtype != torch.bool else mask


def binary(prediction: Tensor, threshold: float) -> Tensor:
    """A bool mask as it is, or where probabilities exceed the threshold."""
    if prediction.is_floating_point():
        return prediction.detach() > threshold
    return prediction if prediction.dtype == torch.bool else prediction != 0


class ImageMean(Metric):
    """Mean over images of a figure, or of a curve whose maximum or mean is the figure."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, points: int = 1, how: str = "mean") -> None:
        super().__init__()
        self.how = how
        self.add_state("total", torch.zeros(points, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, figures: Tensor) -> None:
        """``[B]``, or ``[B, points]``."""
        self.total += figures.reshape(figures.shape[0], -1).double().sum(0)
        self.count += figures.shape[0]

    def compute(self) -> Tensor:
        """The figure over all images since the last reset; NaN without any."""
        mean = self.total / self.count
        return (mean.amax() if self.how == "max" else mean.mean()).float()
