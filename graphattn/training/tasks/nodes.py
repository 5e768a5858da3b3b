"""Tasks whose examples are nodes."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.metrics import Accuracy, BalancedAccuracy, BatchMeanBalancedAccuracy, TaskMean
from graphattn.training.task import GraphTask
from graphattn.training.tasks.checks import check_classes, choose_metric, multilabel_loss, same_shape
from graphattn_datasets.metrics import sbm_class_weights

__all__ = ["InductiveNodeClassification", "NodeClassification"]


class NodeClassification(GraphTask):
    """Node classification in one graph, transductive: masks say which nodes train, validate and test.

    The batch is a graph with ``y`` long ``[N]`` and ``train_mask``, ``val_mask``, ``test_mask`` bool ``[N]``. A
    sampled neighbourhood (``NeighborLoader``) counts its seed nodes only.

    Args:
        model: Returns class scores ``[N, C]``, or ``[N, T]`` for several labels.
        metric: ``"multiclass"``: ``"accuracy"`` or, for two classes, ``"roc_auc"``, both in per cent.
            ``"multilabel"``: ``"roc_auc"`` (per cent) or ``"average_precision"`` (fraction), averaged over labels as
            OGB does. ``None``: the first that fits.
        labels: ``"multiclass"``: ``y`` long ``[N]``. ``"multilabel"``: ``y`` ``[N, T]`` of 0, 1 and NaN (unlabelled,
            skipped), binary cross-entropy.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr`` of
            :class:`~graphattn.training.GraphTask`.
    """

    def __init__(
        self,
        model: nn.Module,
        metric: Literal["accuracy", "roc_auc", "average_precision"] | None = None,
        labels: Literal["multiclass", "multilabel"] = "multiclass",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        fitting: dict[str, dict[str, Any]] = {
            "multiclass": {"accuracy": Accuracy, "roc_auc": partial(_PairAuc, "roc_auc")},
            "multilabel": {name: partial(TaskMean, name) for name in ("roc_auc", "average_precision")},
        }
        if labels not in fitting:
            raise ArgumentError(f"labels must be one of {sorted(fitting)}, got {labels!r}")
        name = choose_metric(f"for labels={labels!r}", metric, list(fitting[labels]))
        self.labels = labels
        self.add_metrics(name, "max", {name: fitting[labels][name]})

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
        if self.labels == "multilabel":
            return same_shape(output[mask], batch.y[mask].float())
        return output[mask], batch.y[mask]

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, or binary cross-entropy over the labelled entries."""
        if self.labels == "multilabel":
            return multilabel_loss(prediction, target)
        check_classes(prediction, target)
        if not len(target):  # a piece of the graph without a training node
            return prediction.sum()
        return F.cross_entropy(prediction, target)


class InductiveNodeClassification(GraphTask):
    r"""Node classification on graphs never seen in training, with classes weighted within each batch.

    The loss of Dwivedi et al., "Benchmarking Graph Neural Networks": class :math:`c` with :math:`n_c` of the
    batch's :math:`V` nodes weighs :math:`(V - n_c)/V`, an absent class 0; in a batch of one class, all nodes weigh the
    same. The metric is balanced accuracy over the
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
        check_classes(prediction, target, self.num_classes)
        weight = sbm_class_weights(target, self.num_classes, validate=False)
        # A lone class would weigh 0, and the mean be 0 / 0.
        return F.cross_entropy(prediction, target, weight=weight.to(prediction.dtype).clamp(min=1e-30))


class _PairAuc(TaskMean):
    """ROC-AUC from two class scores ``[N, 2]``, or one ``[N]``, in per cent."""

    def update(self, scores: Tensor, target: Tensor) -> None:
        if scores.numel() not in (target.numel(), 2 * target.numel()):
            raise ConfigError(f"metric 'roc_auc' of class scores needs two classes, got scores {list(scores.shape)}")
        if scores.dim() == 2 and scores.shape[1] == 2:
            scores = scores[:, 1] - scores[:, 0]
        super().update(scores.reshape(-1, 1), target.reshape(-1, 1))
