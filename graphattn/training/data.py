"""Lightning data modules over :func:`graphattn_datasets.load_dataset`, with an order that survives resumption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.loader import DataLoader as GraphLoader
from torch_geometric.transforms import BaseTransform, Compose

from graphattn.errors import ArgumentError, ConfigError, DataError

__all__ = ["GraphDataModule", "NodeDataModule"]

Transforms: TypeAlias = BaseTransform | list[BaseTransform] | None


class EpochSampler(DistributedSampler):
    """A shuffle that is a function of seed and epoch, and the generator from which loader workers get their seeds."""

    def __init__(self, dataset: Any, *, seed: int, epoch: int, num_replicas: int, rank: int) -> None:
        self.generator = torch.Generator()
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        super().set_epoch(epoch)
        self.generator.manual_seed(self.seed + epoch)


class GraphDataModule(LightningDataModule):
    """Batches of graphs from a data set with training, validation and test splits.

    Args:
        name: A name of ``graphattn list datasets``.
        root: Where files are looked for and downloaded to; ``None``: the data set's own rule.
        pre_transform: Applied once to each graph, the result is cached (Laplacian encodings, say); one or a list.
        transform: Applied each time a graph is read; one or a list. Random transforms belong in the task's
            ``train_transform``, which runs on the device.
        batch_size: Graphs in a training batch.
        eval_batch_size: Graphs in a validation or test batch; ``None``: as in training.
        num_workers: Processes that collate batches.
        persistent_workers: Keep them between epochs. A random ``transform`` then draws other numbers after a
            resumption.
        pin_memory: ``None``: when training on a GPU.
        drop_last: Leave out an incomplete last training batch.
        seed: Seed of the order; ``None``: the run's (``seed_everything``).
        options: Further arguments of the data set, ``{"num_graphs": [500, 100, 100]}`` say.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        pre_transform: Transforms = None,
        transform: Transforms = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        persistent_workers: bool = False,
        pin_memory: bool | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size or batch_size)):
            if value < 1:
                raise ArgumentError(f"{argument} must be at least 1, got {value}")
        self.name = name
        self.root = root
        self.pre_transform = _compose(pre_transform)
        self.transform = _compose(transform)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.persistent_workers = persistent_workers and num_workers > 0
        self.pin_memory = pin_memory
        self.drop_last = drop_last
        self.seed = seed
        self.options = dict(options or {})
        self.splits: Any = None

    def prepare_data(self) -> None:
        """Download, generate and process in one process of each machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the splits."""
        if self.splits is None:
            self.splits = _load(self.name, self.root, self.transform, self.pre_transform, self.options)
            for split in ("train", "val", "test"):
                if getattr(self.splits, split, None) is None:
                    raise ConfigError(
                        f"GraphDataModule needs the splits train, val and test; {self.name!r} has no {split}. "
                        "For one graph with masks use graphattn.training.NodeDataModule"
                    )
                _check_finite(f"{self.name} {split}", getattr(self.splits, split))

    def train_dataloader(self) -> GraphLoader:
        """Shuffled batches, in an order that seed and epoch alone decide."""
        sampler = EpochSampler(
            self.splits.train,
            seed=_run_seed() if self.seed is None else self.seed,
            # Loader workers start before Lightning announces the epoch, so a resumed run must know it here. Its
            # current_epoch is still the one of the checkpoint; this is the number that will be announced.
            epoch=self.trainer.fit_loop.epoch_progress.current.processed if self.trainer else 0,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        return self._loader(
            self.splits.train,
            self.batch_size,
            sampler=sampler,
            generator=sampler.generator,
            drop_last=self.drop_last,
        )

    def val_dataloader(self) -> GraphLoader:
        """The validation split in its own order."""
        return self._loader(self.splits.val, self.eval_batch_size)

    def test_dataloader(self) -> GraphLoader:
        """The test split in its own order."""
        return self._loader(self.splits.test, self.eval_batch_size)

    def predict_dataloader(self) -> GraphLoader:
        """The test split in its own order."""
        return self.test_dataloader()

    def _loader(self, dataset: Any, batch_size: int, **kwargs: Any) -> GraphLoader:
        pin = self.pin_memory
        if pin is None:
            pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        # Evaluation loaders must not draw from the global generator either: its state is the training's.
        kwargs.setdefault("generator", torch.Generator().manual_seed(0))
        return GraphLoader(
            dataset,
            batch_size=batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.persistent_workers,
            pin_memory=pin,
            **kwargs,
        )


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
        self.pre_transform = _compose(pre_transform)
        self.transform = _compose(transform)
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
        dataset = _load(self.name, self.root, self.transform, self.pre_transform, self.options)
        data = dataset if isinstance(dataset, Data) else dataset[0]
        for key in ("train_mask", "val_mask", "test_mask"):
            if not isinstance(data, Data) or getattr(data, key, None) is None:
                raise ConfigError(
                    f"NodeDataModule needs one graph with {key}; {self.name!r} has none. "
                    "For splits of whole graphs use graphattn.training.GraphDataModule"
                )
        _check_finite(self.name, [data])
        self.data = data

    def train_dataloader(self) -> DataLoader:
        """The graph, once an epoch."""
        assert self.data is not None
        # A list and a trivial collate: no copy, and the graph moves to the device once.
        graphs: Any = [self.data]
        return DataLoader(graphs, batch_size=1, collate_fn=_only, generator=torch.Generator().manual_seed(0))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def _only(batch: Sequence[Data]) -> Data:
    return batch[0]


def _compose(transforms: Transforms) -> BaseTransform | None:
    if isinstance(transforms, list):
        return Compose(transforms) if transforms else None
    return transforms


def _load(name: str, root: str | None, transform: Any, pre_transform: Any, options: dict[str, Any]) -> Any:
    from graphattn_datasets import load_dataset

    return load_dataset(name, root=root, transform=transform, pre_transform=pre_transform, **options)


def _run_seed() -> int:
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _check_finite(what: str, graphs: Any) -> None:
    """One pass over the features, so that a bad file is named before a loss turns into NaN."""
    stored = [graphs._data] if isinstance(graphs, InMemoryDataset) else graphs
    for number, data in enumerate(stored):
        for field in ("x", "edge_attr", "pe"):
            value = getattr(data, field, None)
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                row = int(value.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
                where = f"graph {number}, row {row}" if len(stored) > 1 else f"row {row}"
                raise DataError(
                    f"data set {what}: {field} must be finite, got NaN or infinity first in {where} of "
                    f"{list(value.shape)}; mend the file, or fill the gaps in a transform"
                )
