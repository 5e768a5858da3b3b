"""One graph with masks; batches are clusters of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.loader import ClusterData, ClusterLoader

from graphattn.errors import ArgumentError, ConfigError
from graphattn.graph import TokenGraph
from graphattn.graph.order import partition
from graphattn.training.data.common import Transforms
from graphattn.training.data.order import epoch_sampler
from graphattn.training.data.pieces import Pieces, without_counts

__all__ = ["ClusterDataModule"]


class ClusterDataModule(Pieces):
    """One graph with masks; a training batch is some of its clusters, with the edges between them.

    Chiang et al., "Cluster-GCN", KDD 2019, by PyG's ``ClusterData`` and ``ClusterLoader``. Clusters come from METIS
    where pyg-lib or torch-sparse is installed, else from :func:`graphattn.graph.order.partition`.

    Args:
        name: A name of ``graphattn list datasets``.
        num_parts: Number of clusters.
        batch_size: Clusters in a training batch.
        root: Where files are looked for and downloaded to; ``None``: the data set's own rule.
        pre_transform: Applied once, the result is cached; one or a list.
        transform: Applied when the graph is read; one or a list.
        evaluate: ``"full"`` or ``"layerwise"``, as in :class:`NeighborDataModule`.
        eval_batch_size: Nodes in a batch of layer-wise evaluation.
        num_workers: Processes that collect clusters.
        split: Which of several official splits; ``None``: the first or only one.
        seed: Seed of the order; ``None``: the run's (``seed_everything``).
        options: Further arguments of the data set.

    Raises:
        ArgumentError: If a number is out of range or a name unknown.
    """

    def __init__(
        self,
        name: str,
        num_parts: int,
        batch_size: int = 1,
        root: str | None = None,
        pre_transform: Transforms = None,
        transform: Transforms = None,
        evaluate: Literal["full", "layerwise"] = "full",
        eval_batch_size: int = 4096,
        num_workers: int = 0,
        split: int | None = None,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not 1 <= batch_size <= num_parts:
            raise ArgumentError(f"batch_size must be in 1..num_parts={num_parts}, got {batch_size}")
        if evaluate not in ("full", "layerwise"):
            raise ArgumentError(f"evaluate must be 'full' or 'layerwise', got {evaluate!r}")
        super().__init__(
            name,
            root,
            pre_transform,
            transform,
            split,
            options,
            evaluate=evaluate,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        self.num_parts = num_parts
        self.batch_size = batch_size
        self._clusters: ClusterData | None = None

    def train_dataloader(self) -> ClusterLoader:
        """Clusters in an order that seed and epoch alone decide."""
        if self._clusters is None:
            graph = without_counts(self.data)
            if self.num_parts > graph.num_nodes:
                raise ConfigError(f"num_parts must be at most the {graph.num_nodes} nodes, got {self.num_parts}")
            self._clusters = _Clusters(graph, self.num_parts, keep_inter_cluster_edges=True, log=False)
        order = epoch_sampler(self._clusters, self.seed, self.trainer)
        return ClusterLoader(
            self._clusters,
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self.num_workers,
            pin_memory=self._pinned(),
            generator=order.generator,
        )


class _Clusters(ClusterData):
    """PyG's clusters, without METIS where that is missing."""

    def _metis(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        try:
            return super()._metis(edge_index, num_nodes)
        except ImportError:
            pass
        graph = TokenGraph.from_edge_index(edge_index, num_nodes, validate=False)
        order = partition(graph, parts=self.num_parts)
        cuts = torch.tensor([num_nodes * part // self.num_parts for part in range(1, self.num_parts)])
        cluster = torch.empty(num_nodes, dtype=torch.long)
        cluster[order] = torch.bucketize(torch.arange(num_nodes), cuts, right=True)
        return cluster
