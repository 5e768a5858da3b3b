"""Batches of graphs."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.loader import DataLoader as GraphLoader

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.data.common import Transforms, check_finite, compose, load
from graphattn.training.data.order import epoch_sampler, whole_split
from graphattn.training.data.resident import ResidentGraphs

__all__ = ["GraphDataModule"]


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
        on_device: Keep the graphs on the training device and put batches together there, in this process: for sets
            that fit, the fastest way. Batches are the same.
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
        on_device: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if on_device and num_workers:
            raise ArgumentError(f"on_device makes batches in this process, so num_workers must be 0, got {num_workers}")
        for argument, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size or batch_size)):
            if value < 1:
                raise ArgumentError(f"{argument} must be at least 1, got {value}")
        self.name = name
        self.root = root
        self.pre_transform = compose(pre_transform)
        self.transform = compose(transform)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.persistent_workers = persistent_workers and num_workers > 0
        self.pin_memory = pin_memory
        self.on_device = on_device
        self.drop_last = drop_last
        self.seed = seed
        self.options = dict(options or {})
        self.splits: Any = None
        self._held: dict[int, dict[str, Tensor]] = {}

    def prepare_data(self) -> None:
        """Download, generate and process in one process of each machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the splits."""
        if self.splits is None:
            self.splits = load(self.name, self.root, self.transform, self.pre_transform, self.options)
            for split in ("train", "val", "test"):
                if getattr(self.splits, split, None) is None:
                    raise ConfigError(
                        f"GraphDataModule needs the splits train, val and test; {self.name!r} has no {split}. "
                        "For one graph with masks use graphattn.training.NodeDataModule"
                    )
                check_finite(f"{self.name} {split}", getattr(self.splits, split))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, in an order that seed and epoch alone decide."""
        sampler = epoch_sampler(self.splits.train, self.seed, self.trainer)
        if self.drop_last and len(sampler) < self.batch_size:
            raise ConfigError(
                f"drop_last leaves no training batch: {self.name} has {len(sampler)} training graphs for each process, "
                f"batch_size is {self.batch_size}"
            )
        return self._loader(
            self.splits.train,
            self.batch_size,
            sampler=sampler,
            generator=sampler.generator,
            drop_last=self.drop_last,
        )

    def val_dataloader(self) -> DataLoader:
        """The validation split in its own order."""
        return self._loader(self.splits.val, self.eval_batch_size, sampler=whole_split(self.splits.val, self.trainer))

    def test_dataloader(self) -> DataLoader:
        """The test split in its own order."""
        return self._loader(self.splits.test, self.eval_batch_size, sampler=whole_split(self.splits.test, self.trainer))

    def predict_dataloader(self) -> DataLoader:
        """The test split in its own order."""
        return self.test_dataloader()

    def _loader(self, dataset: Any, batch_size: int, **kwargs: Any) -> DataLoader:
        if self.on_device:
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            together = ResidentGraphs(dataset, device, self._held)
            kwargs.setdefault("generator", torch.Generator().manual_seed(0))
            numbers: Any = range(len(dataset))
            return DataLoader(numbers, batch_size=batch_size, collate_fn=together, **kwargs)
        return GraphLoader(dataset, batch_size=batch_size, **self._loader_options(**kwargs))

    def _loader_options(self, **kwargs: Any) -> dict[str, Any]:
        pin = self.pin_memory
        if pin is None:
            pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        # Evaluation loaders must not draw from the global generator either: its state is the training's.
        kwargs.setdefault("generator", torch.Generator().manual_seed(0))
        workers = {"num_workers": self.num_workers, "persistent_workers": self.persistent_workers}
        return {**workers, "pin_memory": pin, **kwargs}
