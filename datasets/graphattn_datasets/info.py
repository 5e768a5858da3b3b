"""What is known about a data set without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["Anchor", "DatasetInfo"]

Task = Literal[
    "node",
    "inductive_node",
    "graph_regression",
    "graph_classification",
    "image_classification",
    "segmentation",
    "language_modelling",
    "link",
]
Metric = Literal[
    "accuracy",
    "balanced_accuracy",
    "roc_auc",
    "average_precision",
    "mae",
    "rmse",
    "mrr",
    "hits@20",
    "hits@50",
    "hits@100",
    "max_f",
    "instance_ap",
    "bits_per_character",
]


class Anchor(NamedTuple):
    """A published test result, in the unit of the publication (per cent, except MAE and average precision).

    Args:
        model: Name of the model.
        value: Mean.
        spread: Standard deviation, if known.
        source: Where it is published.
        checked: True if the number was read in the source; False if it was quoted from memory or from a
            review: look it up before you cite it.
    """

    model: str
    value: float
    spread: float | None
    source: str
    checked: bool


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about one data set.

    Args:
        name: Name for :func:`graphattn_datasets.load_dataset`.
        loader: ``"module:function"`` that makes it.
        task: What is predicted, of what.
        metric: The metric of the leaderboard.
        splits: ``"files"`` (three sets of graphs or images), ``"masks"`` (one graph, masks of nodes), ``"folds"``
            (ten folds), ``"indices"`` (numbers of graphs) or ``"edges"`` (one graph, sets of edges).
        size: One line about its size.
        source: Where it comes from.
        licence: Licence of the data.
        exactness: What is exact, and what is not, about each way to get it.
        data_path: Where raw files lie under ``$GRAPHATTN_DATA``; empty if generated.
        num_classes: Number of classes (single label).
        num_targets: Number of regression targets or of binary labels.
        multilabel: True for several binary labels a graph.
        node_vocab: Number of node ids, or one number for each column of ``x``; None if ``x`` is not ids.
        node_channels: Number of real-valued node features; None if there are none.
        edge_vocab: Number of edge ids, or one number for each column of ``edge_attr``; None if there are
            none.
        anchors: Published results.
    """

    name: str
    loader: str
    task: Task
    metric: Metric
    splits: Literal["files", "masks", "folds", "indices", "edges"]
    size: str
    source: str
    licence: str
    exactness: str
    data_path: str = ""
    num_classes: int | None = None
    num_targets: int | None = None
    multilabel: bool = False
    node_vocab: int | tuple[int, ...] | None = None
    node_channels: int | None = None
    edge_vocab: int | tuple[int, ...] | None = None
    anchors: tuple[Anchor, ...] = ()

    @property
    def out_channels(self) -> int:
        """Outputs of a model for this task: classes, binary labels or targets."""
        return self.num_classes or self.num_targets or 1
