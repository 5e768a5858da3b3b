"""What tasks check and share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.padding import IGNORED

__all__ = ["check_classes", "choose_metric", "labels_or_nan", "multilabel_loss", "same_shape"]


def check_classes(scores: Tensor, target: Tensor, num_classes: int | None = None) -> None:
    """Raise a :class:`ConfigError` unless scores are ``[rows, classes]`` and targets long."""
    if scores.dim() != 2 or scores.shape[0] != target.shape[0] or num_classes not in (None, scores.shape[-1]):
        wanted = f"[{target.shape[0]}, {num_classes or 'classes'}]"
        raise ConfigError(
            f"the model must return class scores {wanted}, got {tuple(scores.shape)}; check the model's out_channels "
            "and readout"
        )
    if target.dtype != torch.long:
        raise ConfigError(f"class labels y must be torch.long, got {target.dtype}")


def same_shape(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as ``[B, T]``."""
    output = output.unsqueeze(-1) if output.dim() == 1 else output
    if output.dim() == 2 and target.numel() == output.numel():
        return output, target.view_as(output)
    raise ConfigError(
        f"the model returned {tuple(output.shape)} for targets y of shape {tuple(target.shape)}; check the model's "
        "out_channels and readout"
    )


def labels_or_nan(y: Tensor) -> Tensor:
    """Floating labels, NaN where there are none; integers have -100 there."""
    return y.float() if y.is_floating_point() else y.float().masked_fill(y == IGNORED, math.nan)


def multilabel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy over the labelled entries; NaN targets are unlabelled."""
    labelled = ~target.isnan()
    losses = F.binary_cross_entropy_with_logits(prediction, target.nan_to_num(0.0), reduction="none")
    # A sum over a mask and not a selection: the number of labels need not reach the host.
    return losses.where(labelled, 0.0).sum() / labelled.sum().clamp(min=1)


def choose_metric(what: str, metric: str | None, known: Sequence[str]) -> str:
    """The metric, the first that fits if none is named.

    Raises:
        ArgumentError: If it does not fit; the text lists those that do.
    """
    if metric is not None and metric not in known:
        raise ArgumentError(f"metric {what} must be one of {tuple(known)}, got {metric!r}")
    return known[0] if metric is None else metric
