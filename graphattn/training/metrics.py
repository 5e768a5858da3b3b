"""Metrics as ``torchmetrics`` modules; classification figures are in per cent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["Accuracy", "BalancedAccuracy", "BatchMeanBalancedAccuracy", "TaskMean", "WeightedMean"]


def _class_counts(scores: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right answers, targets and predictions of each class, long ``[num_classes]``, without waiting for the device.
    Rows whose target is negative have none and count nowhere."""
    predicted = scores.argmax(-1)
    zero, one = torch.zeros(num_classes, dtype=torch.long, device=target.device), (target >= 0).long()
    right, target = (predicted == target).long(), target.clamp(min=0)
    return zero.scatter_add(0, target, right), zero.scatter_add(0, target, one), zero.scatter_add(0, predicted, one)


def _mean_recall(right: Tensor, total: Tensor, counted: Tensor) -> Tensor:
    """Mean recall over the classes that are counted, in per cent."""
    recall = right / total.clamp(min=1)
    return 100 * recall.where(counted, 0.0).sum() / counted.sum().clamp(min=1)


class WeightedMean(Metric):
    """Mean of losses, each of which is a mean itself over some number of terms; NaN stays NaN.

    Lightning's own mean cuts the mean number of terms of several processes to a whole one; torchmetrics' looks for NaN
    and waits for the device to do so.
    """

    full_state_update = False
    higher_is_better = False
    value: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("value", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | int) -> None:
        """Add the mean over ``weight`` terms."""
        self.value += value * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """The mean over all terms since the last reset."""
        return self.value / self.weight.clamp(min=1)


class Accuracy(Metric):
    """Share of right answers, in per cent; takes scores ``[N, C]`` and targets long ``[N]``, -100 for none."""

    full_state_update = False
    higher_is_better = True
    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self.right += (scores.argmax(-1) == target).sum()
        self.total += (target >= 0).sum()

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset."""
        return 100 * self.right / self.total.clamp(min=1)


class BalancedAccuracy(Metric):
    """Mean recall over classes, counted once over the whole split, in per cent (the SBM metric).

    Args:
        num_classes: Number of classes; scores are ``[N, num_classes]``, targets long ``[N]``, -100 for none.
    """

    full_state_update = False
    higher_is_better = True
    right: Tensor
    total: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("right", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch."""
        right, total, _ = _class_counts(scores, target, self.num_classes)
        self.right += right
        self.total += total

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset."""
        return _mean_recall(self.right, self.total, self.total > 0)


class BatchMeanBalancedAccuracy(Metric):
    """Balanced accuracy of each batch, averaged over batches: the figure of the published SBM code.

    A class that a batch lacks counts as recall 0 where it is predicted; the value depends on the batch size. Report
    :class:`BalancedAccuracy`, and this one only to compare with figures made that way.

    Args:
        num_classes: Number of classes; scores are ``[N, num_classes]``, targets long ``[N]``.
    """

    full_state_update = False
    higher_is_better = True
    value: Tensor
    batches: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("value", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("batches", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch."""
        right, total, predicted = _class_counts(scores, target, self.num_classes)
        self.value += _mean_recall(right, total, (total > 0) | (predicted > 0))
        self.batches += 1

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset."""
        return self.value / self.batches.clamp(min=1)


def _ranks(scores: Tensor) -> Tensor:
    """The places of scores among the distinct ones, in 0..1, float64: torchmetrics takes others for logits, and its
    sigmoid ties all that are large."""
    distinct, place = scores.unique(return_inverse=True)
    return place.double() / max(len(distinct) - 1, 1)


class TaskMean(Metric):
    """A binary ranking metric for each task, averaged over the tasks that have both labels (OGB's rule).

    Labels that are NaN are unlabelled and skipped.

    Args:
        name: ``"average_precision"`` (a fraction, as published) or ``"roc_auc"`` (in per cent).
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    targets: list[Tensor]

    _FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
        "average_precision": (binary_average_precision, 1.0),
        "roc_auc": (binary_auroc, 100.0),
    }

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function, self.unit = self._FUNCTIONS[name]
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch: scores and targets ``[B, tasks]``, targets 0, 1 or NaN."""
        self.scores.append(scores.detach().float())
        self.targets.append(target.float())

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset; NaN where no task has both labels, or a score is NaN."""
        scores, targets = dim_zero_cat(self.scores), dim_zero_cat(self.targets)
        device = scores.device
        scores, targets = scores.cpu(), targets.cpu()
        values = []
        for score, target in zip(scores.unbind(1), targets.unbind(1), strict=True):
            labelled = ~target.isnan()
            score, label = score[labelled], target[labelled].long()
            if label.numel() and 0 < int(label.sum()) < label.numel():
                broken = bool(score.isnan().any())
                values.append(score.new_tensor(float("nan")) if broken else self.function(_ranks(score), label))
        if not values:
            return torch.tensor(float("nan"), device=device)
        return self.unit * torch.stack(values).mean().to(device, torch.float32)
