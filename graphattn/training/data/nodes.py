"""One graph with masks, all of it in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from graphattn.errors import ConfigError
from graphattn.training.data.common import Transforms, check_finite, compose, free_memory, load

__all__ = ["NodeDataModule"]


class NodeDataModule(LightningDataModule):
    """One graph with ``train_mask``, ``val_mask`` and ``test_mask``; every batch is the whole graph.

    Args:
        name: A name of ``graphattn list datasets``.
        root: Where files are looked for and downloaded to; ``None``: the data set's own rule.
        pre_transform: Applied once, the result is cached; one or a list.
        transform: Applied when the graph is read; one or a list.
        split: Which of several official splits (``split_index`` of the data set); ``None``: its first or only one.
        options: Further arguments of the data set.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        pre_transform: Transforms = None,
        transform: Transforms = None,
        split: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.root = root
        self.pre_transform = compose(pre_transform)
        self.transform = compose(transform)
        self.options = dict(options or {})
        if split is not None:
            self.options["split_index"] = split
        self.data: Data | None = None

    def prepare_data(self) -> None:
        """Download and process in one process of each machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the graph and choose its split."""
        if self.data is not None:
            return
        dataset = load(self.name, self.root, self.transform, self.pre_transform, self.options)
        data = dataset if isinstance(dataset, Data) else dataset[0]
        for key in ("train_mask", "val_mask", "test_mask"):
            if not isinstance(data, Data) or getattr(data, key, None) is None:
                raise ConfigError(
                    f"NodeDataModule needs one graph with {key}; {self.name!r} has none. "
                    "For splits of whole graphs use graphattn.training.GraphDataModule, for edges LinkDataModule"
                )
        check_finite(self.name, [data])
        self.data = data

    def train_dataloader(self) -> DataLoader:
        """The graph, once an epoch."""
        assert self.data is not None
        # A list and a trivial collate: no copy, and the graph moves to the device once.
        graphs: Any = [self.data]
        return DataLoader(graphs, batch_size=1, collate_fn=_only, generator=torch.Generator().manual_seed(0))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def transfer_batch_to_device(self, batch: Data, device: torch.device, dataloader_idx: int) -> Data:
        """Move the graph; one clear error where it alone is more than the device holds."""
        free = free_memory(device)
        needed = sum(value.nbytes for value in batch.to_dict().values() if isinstance(value, Tensor))
        if free is not None and needed > free and batch.edge_index.device != device:
            raise ConfigError(
                f"{self.name} takes {needed / 1e9:.2f} GB on {device}, where {free / 1e9:.2f} GB are free. Train on "
                "pieces of it: graphattn.training.NeighborDataModule (sampled neighbourhoods) or ClusterDataModule, "
                "with evaluate='layerwise'"
            )
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def _only(batch: Sequence[Data]) -> Data:
    return batch[0]
