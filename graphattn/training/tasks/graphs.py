"""Tasks whose examples are graphs."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.training.metrics import Accuracy, TaskMean
from graphattn.training.regression_metrics import RegressionError
from graphattn.training.task import GraphTask
from graphattn.training.tasks.checks import check_classes, choose_metric, labels_or_nan, multilabel_loss, same_shape

__all__ = ["GraphClassification", "GraphRegression"]


class GraphRegression(GraphTask):
    """One number, or several, for each graph.

    Args:
        model: Returns ``[B]`` or ``[B, T]``; targets ``y`` are float ``[B]`` or ``[B, T]``, NaN where unlabelled.
        loss: ``"l1"`` (mean absolute error) or ``"mse"``.
        metric: ``"mae"``, or ``"rmse"`` (the root for each target, averaged over targets as OGB does).
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr``, ``capture`` of
            :class:`~graphattn.training.GraphTask`.
    """

    def __init__(
        self, model: nn.Module, loss: Literal["l1", "mse"] = "l1", metric: Literal["mae", "rmse"] = "mae", **kwargs: Any
    ) -> None:
        super().__init__(model, **kwargs)
        losses = {"l1": F.l1_loss, "mse": F.mse_loss}
        if loss not in losses:
            raise ArgumentError(f"loss must be one of {sorted(losses)}, got {loss!r}")
        self._loss = losses[loss]
        name = choose_metric("of GraphRegression", metric, ("mae", "rmse"))
        self.add_metrics(name, "min", {name: partial(RegressionError, name)})

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All graphs."""
        return same_shape(output, labels_or_nan(batch.y))

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Absolute or squared error, over the labelled entries."""
        labelled = ~target.isnan()
        losses = self._loss(prediction, target.nan_to_num(0.0), reduction="none")
        return losses.where(labelled, 0.0).sum() / labelled.sum().clamp(min=1)


class GraphClassification(GraphTask):
    """One label, or several yes-or-no labels, for each graph.

    Args:
        model: Returns scores ``[B, C]`` (``"multiclass"``) or ``[B, T]`` (``"multilabel"``).
        labels: ``"multiclass"``: ``y`` long ``[B]``, cross-entropy. ``"multilabel"``: ``y`` ``[B, T]`` of 0, 1 and
            NaN (unlabelled, skipped), binary cross-entropy; one binary label is ``T = 1``.
        metric: ``"accuracy"`` (per cent) for ``"multiclass"``; ``"average_precision"`` (fraction) or ``"roc_auc"``
            (per cent), both averaged over tasks as OGB does, for ``"multilabel"``. ``None``: the first that fits.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr``, ``capture`` of
            :class:`~graphattn.training.GraphTask`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Literal["multiclass", "multilabel"] = "multiclass",
        metric: Literal["accuracy", "average_precision", "roc_auc"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        fitting: dict[str, tuple[str, ...]] = {
            "multiclass": ("accuracy",),
            "multilabel": ("average_precision", "roc_auc"),
        }
        if labels not in fitting:
            raise ArgumentError(f"labels must be one of {sorted(fitting)}, got {labels!r}")
        name = choose_metric(f"for labels={labels!r}", metric, fitting[labels])
        self.labels = labels
        self.add_metrics(name, "max", {name: Accuracy if name == "accuracy" else partial(TaskMean, name)})

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All graphs."""
        if self.labels == "multiclass":
            return output, batch.y.view(-1)
        return same_shape(output, labels_or_nan(batch.y))

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, or binary cross-entropy over the labelled entries."""
        if self.labels == "multiclass":
            check_classes(prediction, target)
            return F.cross_entropy(prediction, target)
        return multilabel_loss(prediction, target)
