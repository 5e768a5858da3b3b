"""Tasks whose examples are edges."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.inputs import num_rows
from graphattn.training.link_metrics import HitsAt, MeanReciprocalRank
from graphattn.training.metrics import TaskMean
from graphattn.training.negatives import edge_keys, sample_negatives
from graphattn.training.task import GraphTask

__all__ = ["LinkPrediction"]


class LinkPrediction(GraphTask):
    """Whether an edge exists, from the rows that a model gives its two nodes.

    Each training batch is scored beside as many drawn pairs that are no edges; validation and test score the negatives
    of the data set. The model runs once on the graph for each training batch, and once for a whole evaluation.

    Args:
        model: Returns rows ``[N, C]`` of the nodes of a graph.
        decoder: ``decoder(source_rows, target_rows)`` gives a score ``[B]`` of each pair
            (:class:`graphattn.nn.LinkDecoder`); ``None``: their dot product.
        metric: ``"hits@K"`` for any ``K``: share of edges above the ``K``-th best of all negatives. ``"mrr"``: one over
            the rank of each edge among negatives of its own. ``"roc_auc"``. All in per cent, as OGB defines them.
        negatives: What is drawn for training: ``"pairs"``, or ``"targets"`` for the source of each edge.
        num_negatives: How many for each edge.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr`` of
            :class:`~graphattn.training.GraphTask`.

    Raises:
        ArgumentError: If there is no such metric or a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: nn.Module | None = None,
        metric: str = "hits@50",
        negatives: Literal["pairs", "targets"] = "pairs",
        num_negatives: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if negatives not in ("pairs", "targets"):
            raise ArgumentError(f"negatives must be 'pairs' or 'targets', got {negatives!r}")
        if num_negatives < 1:
            raise ArgumentError(f"num_negatives must be at least 1, got {num_negatives}")
        self.decoder = decoder
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.add_metrics(metric, "max", {metric: _make_metric(metric)})
        # Drawn negatives are not the data set's: such a figure would not compare with the others.
        self.train_metrics = nn.ModuleDict()
        self._rows: Tensor | None = None
        self._keys: Tensor | None = None

    def score(self, rows: Tensor, pairs: Tensor) -> Tensor:
        """Scores ``[B]`` of pairs ``[2, B]`` of nodes."""
        source, target = rows[pairs[0]], rows[pairs[1]]
        return (source * target).sum(-1) if self.decoder is None else self.decoder(source, target).view(-1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(prediction, target)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Scores of the batch's pairs, float32 on the host."""
        return self.score(self._node_rows(batch, "predict"), batch.edge_label_index).float().cpu()

    def _step(self, batch: Any, stage: str) -> Tensor:
        if "edge_label_index" not in batch:
            raise ConfigError(
                "LinkPrediction needs edge_label_index in the batch; use graphattn.training.LinkDataModule"
            )
        pairs, labels = batch.edge_label_index, batch.get("edge_label")
        if stage == "train":
            negative = self._draw(batch, pairs)
            labels = torch.cat((labels_of(pairs, 1.0), labels_of(negative, 0.0)))
            pairs = torch.cat((pairs, negative), dim=1)
        scores = self.score(self._node_rows(batch, stage), pairs).float()
        loss = self.loss(scores, labels)
        self._log_loss(stage, loss, labels)
        shared = {"batch_size": num_rows(labels), "on_step": False, "on_epoch": True}
        for name, metric in self.get_submodule(f"{stage}_metrics").items():
            metric.update(*_in_form(name, scores.detach(), labels, int(batch.num_candidates)))
            self.log(f"{stage}/{name}", metric, prog_bar=stage == "val", **shared)
        return self._weighed(loss, labels) if stage == "train" else loss

    def _node_rows(self, batch: Any, stage: str) -> Tensor:
        """The model's rows; in evaluation the weights stand still, so they are kept for all its batches."""
        if stage == "train":
            return self(batch)
        if self._rows is None:
            self._rows = self(batch)
        return self._rows

    def _draw(self, batch: Any, pairs: Tensor) -> Tensor:
        if self._keys is None or self._keys.device != pairs.device:
            known = batch.get("known_edges")
            self._keys = edge_keys(batch.edge_index if known is None else known, batch.num_nodes)
        count = pairs.shape[1] * self.num_negatives
        sources = pairs[0].repeat(self.num_negatives) if self.negatives == "targets" else None
        return sample_negatives(sources, count, batch.num_nodes, self._keys)

    def _forget(self) -> None:
        self._rows = None

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _forget
    on_test_epoch_end = on_predict_epoch_end = _forget

    def on_validation_epoch_end(self) -> None:
        """Let go of the rows."""
        super().on_validation_epoch_end()
        self._forget()


def labels_of(pairs: Tensor, value: float) -> Tensor:
    """The same label for all pairs."""
    return torch.full((pairs.shape[1],), value, device=pairs.device)


def _make_metric(name: str) -> Any:
    if name == "mrr":
        return MeanReciprocalRank
    if name == "roc_auc":
        return partial(TaskMean, name)
    found = re.fullmatch(r"hits@([1-9][0-9]*)", name)
    if found is None:
        raise ArgumentError(f"metric of LinkPrediction must be 'hits@K', 'mrr' or 'roc_auc', got {name!r}")
    return partial(HitsAt, int(found[1]))


def _in_form(name: str, scores: Tensor, labels: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    if (name == "mrr") != (candidates > 1):
        has = (
            "negatives of its own for each edge: use 'mrr'" if candidates > 1 else "one pool of negatives: use 'hits@K'"
        )
        raise ConfigError(f"metric {name!r} does not fit these data, which have {has}")
    if name == "roc_auc":
        return scores.unsqueeze(1), labels.unsqueeze(1)
    return (scores.view(-1, candidates), labels.view(-1, candidates)) if name == "mrr" else (scores, labels)
