"""The four tasks of graph learning benchmarks."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.metrics import Accuracy, BalancedAccuracy, BatchMeanBalancedAccuracy, TaskMean
from graphattn.training.task import GraphTask

__all__ = ["GraphClassification", "GraphRegression", "InductiveNodeClassification", "NodeClassification"]


class NodeClassification(GraphTask):
    """Node classification in one graph, transductive: masks say which nodes train, validate and test.

    The batch is a graph with ``y`` long ``[N]`` and ``train_mask``, ``val_mask``, ``test_mask`` bool ``[N]``. A
    sampled neighbourhood (``NeighborLoader``) counts its seed nodes only.

    Args:
        model: Returns class scores ``[N, C]``.
        metric: ``"accuracy"`` or, for two classes, ``"roc_auc"``; both in per cent.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr`` of
            :class:`~graphattn.training.GraphTask`.
    """

    def __init__(self, model: nn.Module, metric: Literal["accuracy", "roc_auc"] = "accuracy", **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        makers = {"accuracy": Accuracy, "roc_auc": partial(_PairAuc, "roc_auc")}
        if metric not in makers:
            raise ArgumentError(f"metric must be one of {sorted(makers)}, got {metric!r}")
        self.add_metrics(metric, "max", {metric: makers[metric]})

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """Scores and labels of the stage's nodes."""
        mask = getattr(batch, f"{stage}_mask", None)
        if mask is None or mask.dim() != 1:
            came = "nothing" if mask is None else f"shape {tuple(mask.shape)}"
            raise ConfigError(
                f"NodeClassification needs {stage}_mask bool [N] in the data, got {came}; of several splits "
                "choose one (NodeDataModule's split)"
            )
        if "batch_size" in batch:  # stored by NeighborLoader, whose seed nodes come first
            mask = mask.clone()
            mask[batch.batch_size :] = False
        return output[mask], batch.y[mask]

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        _check_classes(prediction, target)
        return F.cross_entropy(prediction, target)


class InductiveNodeClassification(GraphTask):
    r"""Node classification on graphs never seen in training, with classes weighted within each batch.

    The loss of Dwivedi et al., "Benchmarking Graph Neural Networks": class :math:`c` with :math:`n_c` of the
    batch's :math:`V` nodes weighs :math:`(V - n_c)/V`, an absent class 0. The metric is balanced accuracy over the
    whole split; ``balanced_accuracy_batch_mean`` is its mean over batches, as the published code has it.

    Args:
        model: Returns class scores ``[N, num_classes]``.
        num_classes: Number of classes.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr`` of
            :class:`~graphattn.training.GraphTask`.
    """

    def __init__(self, model: nn.Module, num_classes: int, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.num_classes = num_classes
        self.add_metrics(
            "balanced_accuracy",
            "max",
            {
                "balanced_accuracy": partial(BalancedAccuracy, num_classes),
                "balanced_accuracy_batch_mean": partial(BatchMeanBalancedAccuracy, num_classes),
            },
        )

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All nodes."""
        return output, batch.y.view(-1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with the batch's class weights."""
        from graphattn_datasets.metrics import sbm_class_weights

        _check_classes(prediction, target, self.num_classes)
        return F.cross_entropy(prediction, target, weight=sbm_class_weights(target, self.num_classes))


class GraphRegression(GraphTask):
    """One number, or several, for each graph; the metric is the mean absolute error.

    Args:
        model: Returns ``[B]`` or ``[B, T]``; targets ``y`` are float ``[B]`` or ``[B, T]``.
        loss: ``"l1"`` (mean absolute error) or ``"mse"``.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr`` of
            :class:`~graphattn.training.GraphTask`.
    """

    def __init__(self, model: nn.Module, loss: Literal["l1", "mse"] = "l1", **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        losses = {"l1": F.l1_loss, "mse": F.mse_loss}
        if loss not in losses:
            raise ArgumentError(f"loss must be one of {sorted(losses)}, got {loss!r}")
        self._loss = losses[loss]
        self.add_metrics("mae", "min", {"mae": MeanAbsoluteError})

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All graphs."""
        return _same_shape(output, batch.y.float())

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Absolute or squared error."""
        return self._loss(prediction, target)


class GraphClassification(GraphTask):
    """One label, or several yes-or-no labels, for each graph.

    Args:
        model: Returns scores ``[B, C]`` (``"multiclass"``) or ``[B, T]`` (``"multilabel"``).
        labels: ``"multiclass"``: ``y`` long ``[B]``, cross-entropy. ``"multilabel"``: ``y`` ``[B, T]`` of 0, 1 and
            NaN (unlabelled, skipped), binary cross-entropy; one binary label is ``T = 1``.
        metric: ``"accuracy"`` (per cent) for ``"multiclass"``; ``"average_precision"`` (fraction) or ``"roc_auc"``
            (per cent), both averaged over tasks as OGB does, for ``"multilabel"``. ``None``: the first that fits.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr`` of
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
        name = fitting[labels][0] if metric is None else metric
        if name not in fitting[labels]:
            raise ArgumentError(f"metric for labels={labels!r} must be one of {fitting[labels]}, got {metric!r}")
        self.labels = labels
        self.add_metrics(name, "max", {name: Accuracy if name == "accuracy" else partial(TaskMean, name)})

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All graphs."""
        if self.labels == "multiclass":
            return output, batch.y.view(-1)
        return _same_shape(output, batch.y.float())

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, or binary cross-entropy over the labelled entries."""
        if self.labels == "multiclass":
            _check_classes(prediction, target)
            return F.cross_entropy(prediction, target)
        labelled = ~target.isnan()
        losses = F.binary_cross_entropy_with_logits(prediction, target.nan_to_num(0.0), reduction="none")
        # A sum over a mask and not a selection: the number of labels need not reach the host.
        return losses.where(labelled, 0.0).sum() / labelled.sum().clamp(min=1)


class _PairAuc(TaskMean):
    """ROC-AUC from two class scores ``[N, 2]``, or one ``[N]``, in per cent."""

    def update(self, scores: Tensor, target: Tensor) -> None:
        if scores.dim() == 2 and scores.shape[1] == 2:
            scores = scores[:, 1] - scores[:, 0]
        super().update(scores.reshape(-1, 1), target.reshape(-1, 1))


def _check_classes(scores: Tensor, target: Tensor, num_classes: int | None = None) -> None:
    if scores.dim() != 2 or scores.shape[0] != target.shape[0] or num_classes not in (None, scores.shape[-1]):
        wanted = f"[{target.shape[0]}, {num_classes or 'classes'}]"
        raise ConfigError(
            f"the model must return class scores {wanted}, got {tuple(scores.shape)}; check the model's out_channels "
            "and readout"
        )
    if target.dtype != torch.long:
        raise ConfigError(f"class labels y must be torch.long, got {target.dtype}")


def _same_shape(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as ``[B, T]``."""
    output = output.unsqueeze(-1) if output.dim() == 1 else output
    if output.dim() == 2 and target.numel() == output.numel():
        return output, target.view_as(output)
    raise ConfigError(
        f"the model returned {tuple(output.shape)} for targets y of shape {tuple(target.shape)}; check the model's "
        "out_channels and readout"
    )
