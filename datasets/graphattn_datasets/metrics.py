"""Metrics and class weights that the usual packages lack or define otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from graphattn.errors import ArgumentError

__all__ = ["average_precision", "balanced_accuracy", "batch_mean_balanced_accuracy", "roc_auc", "sbm_class_weights"]


def balanced_accuracy(preds: Tensor, target: Tensor, num_classes: int | None = None) -> Tensor:
    r"""Mean recall over the classes that occur in ``target``, over everything given at once.

    .. math:: \frac{1}{|C|} \sum_{c \in C} \frac{|\{i : \hat y_i = c, y_i = c\}|}{|\{i : y_i = c\}|}

    Give it a whole split: this is the accuracy of PATTERN and CLUSTER as GraphGPS and later work report it.
    The first papers averaged over mini-batches instead: :func:`batch_mean_balanced_accuracy`.

    Args:
        preds: Class ids ``[N]`` or scores ``[N, C]``, whose argmax counts.
        target: Class ids ``[N]``.
        num_classes: Number of classes; only needed to check ids against it.

    Returns:
        A scalar in 0..1 (times 100 for the usual per cent), NaN if ``target`` is empty.

    Raises:
        ArgumentError: If shapes or ids do not fit.
    """
    correct, total, _ = _class_counts(preds, target, num_classes)
    present = total > 0
    return (correct[present] / total[present]).mean()


def batch_mean_balanced_accuracy(preds: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """The metric of benchmarking-gnns: balanced accuracy of each mini-batch, averaged over mini-batches.

    As in the authors' code a class that is predicted but does not occur in a batch counts as recall 0 there.

    Args:
        preds: For each mini-batch class ids ``[N]`` or scores ``[N, C]``.
        target: For each mini-batch class ids ``[N]``.

    Returns:
        A scalar in 0..1.

    Raises:
        ArgumentError: If the numbers of batches differ or are 0.
    """
    if len(preds) != len(target) or not len(target):
        raise ArgumentError(
            f"preds and target must hold the same batches, at least one; got {len(preds)}, {len(target)}"
        )
    values = []
    for batch_preds, batch_target in zip(preds, target, strict=True):
        correct, total, predicted = _class_counts(batch_preds, batch_target, None)
        occurs = (total > 0) | (predicted > 0)
        values.append((correct[occurs] / total[occurs].clamp(min=1)).mean())
    return torch.stack(values).mean()


def average_precision(preds: Tensor, target: Tensor) -> Tensor:
    r"""Average precision, macro over tasks, skipping unlabelled entries: the ``ap`` of OGB's evaluator.

    .. math:: \mathrm{AP} = \sum_n (R_n - R_{n-1}) P_n

    over the distinct scores from high to low. Tasks without a positive or without a negative label are left
    out.

    Args:
        preds: Scores ``[N, T]`` or ``[N]``; any increasing function of the probability.
        target: Labels 0 or 1 of the same shape, NaN where unlabelled.

    Returns:
        A scalar in 0..1.

    Raises:
        ArgumentError: If shapes differ, scores are NaN, or no task has both labels.
    """
    return _task_mean(preds, target, _binary_average_precision)


def roc_auc(preds: Tensor, target: Tensor) -> Tensor:
    r"""Area under the ROC curve, macro over tasks, skipping unlabelled entries: the ``rocauc`` of OGB's evaluator.

    .. math:: \mathrm{AUC} = \frac{1}{P N} \sum_{i: y_i = 1} \sum_{j: y_j = 0}
              \left([s_i > s_j] + \tfrac12 [s_i = s_j]\right)

    Tasks without a positive or without a negative label are left out.

    Args:
        preds: Scores ``[N, T]`` or ``[N]``; any increasing function of the probability.
        target: Labels 0 or 1 of the same shape, NaN where unlabelled.

    Returns:
        A scalar in 0..1.

    Raises:
        ArgumentError: If shapes differ, scores are NaN, or no task has both labels.
    """
    return _task_mean(preds, target, _binary_roc_auc)


def sbm_class_weights(y: Tensor, num_classes: int, *, validate: bool = True) -> Tensor:
    r"""Class weights of the cross-entropy loss on SBM graphs: :math:`(V - n_c) / V`, 0 for absent classes.

    Args:
        y: Class ids ``[V]`` of a mini-batch.
        num_classes: Number of classes C.
        validate: Look at the ids, for which a device is waited for. Without it nothing waits, and negative ids
            (padding, nodes without a label) are left out of V.

    Returns:
        Weights float32 ``[C]``.

    Raises:
        ArgumentError: If an id is outside 0..C-1.
    """
    if validate:
        _check_ids(y, "y", num_classes)
    counted = (y >= 0).long()
    # Not bincount, which waits for the device to say how many classes there are.
    count = counted.new_zeros(num_classes).scatter_add(0, y.long().clamp(min=0), counted)
    nodes = count.sum()
    return torch.where(count > 0, (nodes - count) / nodes.clamp(min=1), 0.0)


def _class_counts(preds: Tensor, target: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Per class: right predictions, occurrences, predictions; float64 ``[C]``."""
    if preds.dim() == 2:
        num_classes = num_classes or preds.size(1)
        preds = preds.argmax(dim=1)
    if preds.shape != target.shape or target.dim() != 1:
        raise ArgumentError(
            f"preds must be [N] or [N, C] and target [N], got {list(preds.shape)} and {list(target.shape)}"
        )
    _check_ids(preds, "preds", num_classes)
    _check_ids(target, "target", num_classes)
    size = num_classes or (1 + int(max(preds.max(), target.max())) if target.numel() else 1)
    correct = torch.bincount(target[preds == target], minlength=size)
    return correct.double(), torch.bincount(target, minlength=size), torch.bincount(preds, minlength=size)


def _check_ids(ids: Tensor, name: str, num_classes: int | None) -> None:
    if ids.is_floating_point() or ids.dim() != 1:
        raise ArgumentError(f"{name} must be integer class ids [N], got {ids.dtype} {list(ids.shape)}")
    if ids.numel() and (int(ids.min()) < 0 or (num_classes is not None and int(ids.max()) >= num_classes)):
        limit = "" if num_classes is None else f"..{num_classes - 1}"
        raise ArgumentError(f"{name} must lie in 0{limit}, got {int(ids.min())}..{int(ids.max())}")


def _task_mean(preds: Tensor, target: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if preds.shape != target.shape or preds.dim() not in (1, 2):
        raise ArgumentError(
            f"preds and target must both be [N] or [N, T], got {list(preds.shape)} and {list(target.shape)}"
        )
    if preds.isnan().any():
        raise ArgumentError("preds must not contain NaN")
    preds, target = preds.reshape(len(preds), -1).double(), target.reshape(len(target), -1).double()
    values = []
    for task in range(preds.size(1)):
        labelled = ~target[:, task].isnan()
        labels = target[labelled, task] == 1
        if bool(labels.any()) and not bool(labels.all()):
            values.append(of(preds[labelled, task], labels))
    if not values:
        raise ArgumentError("target must have at least one task with both labels 0 and 1")
    return torch.stack(values).mean()


def _binary_roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    negative = scores[~labels].sort().values
    positive = scores[labels]
    below = torch.searchsorted(negative, positive, side="left") + torch.searchsorted(negative, positive, side="right")
    return below.double().sum() / (2 * positive.numel() * negative.numel())


def _binary_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    scores, hits = scores[order], labels[order].double().cumsum(0)
    # Equal scores are one threshold: keep the last of each run.
    last = torch.cat((scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)))
    hits, rank = hits[last], torch.arange(1, len(scores) + 1, device=scores.device)[last]
    gain = torch.diff(hits, prepend=hits.new_zeros(1))
    return (gain * hits / rank).sum() / hits[-1]
