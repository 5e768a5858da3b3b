"""What training on pieces of a graph has in common: evaluation on all of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch_geometric.data import Data

from graphattn.errors import ArgumentError
from graphattn.training.data.common import Transforms
from graphattn.training.data.nodes import NodeDataModule

__all__ = ["Pieces", "without_counts"]


class Pieces(NodeDataModule):
    """Training on pieces of a graph; evaluation on all of it."""

    def __init__(
        self,
        name: str,
        root: str | None,
        pre_transform: Transforms,
        transform: Transforms,
        split: int | None,
        options: dict[str, Any] | None,
        *,
        evaluate: str,
        eval_batch_size: int,
        num_workers: int,
        seed: int | None,
    ) -> None:
        super().__init__(name, root, pre_transform, transform, split, options)
        if eval_batch_size < 1:
            raise ArgumentError(f"eval_batch_size must be at least 1, got {eval_batch_size}")
        self.evaluate = evaluate
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed

    def _whole(self) -> Any:
        loader: Any = super().train_dataloader()
        if self.evaluate == "layerwise":
            graph: Any = copy.copy(self.data)
            graph.layerwise_rows = self.eval_batch_size
            loader.dataset[0] = graph
        return loader

    def val_dataloader(self) -> Any:
        """The whole graph."""
        return self._whole()

    test_dataloader = predict_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; of a graph that is evaluated layer by layer only labels and masks."""
        if "layerwise_rows" not in batch:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        names = [name for name in batch.keys() if name == "y" or name.endswith("_mask")]
        return copy.copy(batch).to(device, *names)

    def _pinned(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def without_counts(data: Data | None) -> Data:
    """The graph with nothing in it that is the whole's: PyG's loaders would hand a number of nodes to each piece."""
    assert data is not None
    graph = copy.copy(data)
    if "num_nodes" in graph and graph.x is not None:
        del graph.num_nodes
    return graph
