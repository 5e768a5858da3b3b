"""One graph with masks; batches are sampled neighbourhoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from graphattn.errors import ArgumentError, MissingPackageError
from graphattn.training.data.common import Transforms
from graphattn.training.data.neighbors import InEdges, NeighborhoodSampler
from graphattn.training.data.order import epoch_sampler, run_seed, whole_split
from graphattn.training.data.pieces import Pieces, without_counts

__all__ = ["NeighborDataModule"]

Evaluate = Literal["full", "layerwise", "neighbors"]


class NeighborDataModule(Pieces):
    """One graph with masks; a training batch is the sampled neighbourhood of some training nodes.

    For graphs that do not fit on the device, or train faster in small steps. Batches are as PyG's ``NeighborLoader``
    makes them: seed nodes first, ``batch_size`` of them, ``n_id``, ``e_id``, ``input_id``; the task counts seeds only.

    Args:
        name: A name of ``graphattn list datasets``.
        num_neighbors: For each hop, one for each layer of the model, the number of in-edges that are followed; -1: all.
        batch_size: Seed nodes in a training batch.
        root: Where files are looked for and downloaded to; ``None``: the data set's own rule.
        pre_transform: Applied once, the result is cached; one or a list.
        transform: Applied when the graph is read; one or a list.
        evaluate: ``"full"``: the whole graph at once. ``"layerwise"``: all nodes, one layer after another, in batches
            of ``eval_batch_size`` nodes (the model must have the parts that
            :func:`graphattn.training.layerwise_inference` names). ``"neighbors"``: batches of seeds with all their
            neighbours over as many hops as in training.
        eval_batch_size: Nodes in a batch of evaluation.
        sampler: ``"graphattn"``: compiled here, the same batches after a resumption. ``"pyg"``: PyG's sampler, which
            needs pyg-lib or torch-sparse and draws anew.
        num_workers: Processes that sample.
        split: Which of several official splits; ``None``: the first or only one.
        seed: Seed of order and choice; ``None``: the run's (``seed_everything``).
        options: Further arguments of the data set.

    Raises:
        ArgumentError: If a number is out of range or a name unknown.
    """

    def __init__(
        self,
        name: str,
        num_neighbors: list[int],
        batch_size: int = 1024,
        root: str | None = None,
        pre_transform: Transforms = None,
        transform: Transforms = None,
        evaluate: Evaluate = "full",
        eval_batch_size: int = 4096,
        sampler: Literal["graphattn", "pyg"] = "graphattn",
        num_workers: int = 0,
        split: int | None = None,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
        for argument, value, known in (
            ("evaluate", evaluate, ("full", "layerwise", "neighbors")),
            ("sampler", sampler, ("graphattn", "pyg")),
        ):
            if value not in known:
                raise ArgumentError(f"{argument} must be one of {known}, got {value!r}")
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
        self.num_neighbors = list(num_neighbors)
        self.batch_size = batch_size
        self.sampler = sampler
        self._edges: InEdges | None = None

    def train_dataloader(self) -> NodeLoader:
        """Neighbourhoods of the training nodes, in an order that seed and epoch alone decide."""
        assert self.data is not None
        nodes = self.data.train_mask.nonzero().view(-1)
        order = epoch_sampler(nodes, self.seed, self.trainer)
        return self._neighborhoods(nodes, self.num_neighbors, self.batch_size, order, self.sampler)

    def val_dataloader(self) -> Any:
        """The validation nodes: as ``evaluate`` says."""
        return self._evaluation("val")

    def test_dataloader(self) -> Any:
        """The test nodes: as ``evaluate`` says."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Any:
        """As the test nodes."""
        return self._evaluation("test")

    def _evaluation(self, part: str) -> Any:
        if self.evaluate != "neighbors":
            return self._whole()
        assert self.data is not None
        nodes = self.data[f"{part}_mask"].nonzero().view(-1)
        everything = [-1] * len(self.num_neighbors)
        return self._neighborhoods(nodes, everything, self.eval_batch_size, None, "graphattn")

    def _neighborhoods(self, nodes: Tensor, counts: list[int], batch_size: int, order: Any, kind: str) -> NodeLoader:
        graph = without_counts(self.data)
        generator = torch.Generator().manual_seed(0) if order is None else order.generator
        return NodeLoader(
            graph,
            node_sampler=_pyg_sampler(graph, counts) if kind == "pyg" else self._sampler(counts, order),
            input_nodes=nodes,
            batch_size=batch_size,
            sampler=whole_split(nodes, self.trainer) if order is None else order,
            num_workers=self.num_workers,
            pin_memory=self._pinned(),
            generator=generator,
        )

    def _sampler(self, counts: list[int], order: Any) -> NeighborhoodSampler:
        assert self.data is not None
        if self._edges is None:
            self._edges = InEdges(self.data.edge_index, int(self.data.num_nodes))
        return NeighborhoodSampler(self._edges, counts, run_seed() if self.seed is None else self.seed, order)


def _pyg_sampler(graph: Data, counts: Sequence[int]) -> Any:
    import torch_geometric.typing as have
    from torch_geometric.sampler import NeighborSampler

    if not (have.WITH_PYG_LIB or have.WITH_TORCH_SPARSE):
        raise MissingPackageError(
            "sampler='pyg' needs pyg-lib or torch-sparse, built for this torch; sampler='graphattn' needs neither"
        )
    return NeighborSampler(graph, list(counts))
