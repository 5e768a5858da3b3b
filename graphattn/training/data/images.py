"""Batches of images."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from graphattn.errors import ConfigError
from graphattn.training.data.common import load
from graphattn.training.data.graphs import GraphDataModule

__all__ = ["ImageDataModule"]


class ImageDataModule(GraphDataModule):
    """Batches ``{"x": float [B, C, H, W], "y": int64 [B]}`` of a set of images, each channel of mean 0 and deviation 1.

    Args:
        name: ``"digits"``, ``"mnist"`` or ``"cifar10"``.
        root: Where downloads go; ``None``: the data set's own rule.
        batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch; ``None``: as in training.
        num_workers: Processes that make batches.
        persistent_workers: Keep them between epochs.
        pin_memory: ``None``: when training on a GPU.
        on_device: Keep the images on the training device, as bytes, and make batches there: for small images, the
            fastest way. Batches are the same.
        drop_last: Leave out an incomplete last training batch.
        seed: Seed of the order; ``None``: the run's (``seed_everything``).
        options: Further arguments of the data set, ``{"num_val": 1000}`` say.

    Random crops and flips belong in the task's ``train_transform``
    (:class:`~graphattn.training.RandomCrop`, :class:`~graphattn.training.RandomFlip`).
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        persistent_workers: bool = False,
        pin_memory: bool | None = None,
        on_device: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            name,
            root,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            persistent_workers=persistent_workers,
            pin_memory=pin_memory,
            on_device=on_device,
            drop_last=drop_last,
            seed=seed,
            options=options,
        )
        self._resident: dict[tuple[int, torch.device], Any] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load the splits."""
        if self.splits is None:
            splits = load(self.name, self.root, None, None, self.options)
            if not hasattr(getattr(splits, "train", None), "__getitems__"):
                raise ConfigError(
                    f"ImageDataModule needs a set of images, and {self.name!r} is none; see graphattn list datasets"
                )
            if self.on_device and not hasattr(splits.train, "to"):
                raise ConfigError(f"on_device needs a set that moves to a device, and {self.name!r} has no to(device)")
            self.splits = splits

    def _loader(self, dataset: Any, batch_size: int, **kwargs: Any) -> DataLoader:
        if not self.on_device:
            options = self._loader_options(**kwargs)
            return DataLoader(dataset, batch_size=batch_size, collate_fn=_as_it_is, **options)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        key = id(dataset), device
        if key not in self._resident:
            self._resident[key] = dataset.to(device)
        together = _Together(self._resident[key], device)
        kwargs.setdefault("generator", torch.Generator().manual_seed(0))
        numbers: Any = range(len(dataset))
        return DataLoader(numbers, batch_size=batch_size, collate_fn=together, **kwargs)


class _Together:
    """Batches of a set that is on the device; nobody waits for the device."""

    def __init__(self, dataset: Any, device: torch.device) -> None:
        self.dataset, self.device = dataset, device

    def __call__(self, numbers: list[int]) -> Any:
        chosen = torch.tensor(numbers)
        if self.device.type == "cuda":
            chosen = chosen.pin_memory().to(self.device, non_blocking=True)
        return self.dataset[chosen]


def _as_it_is(batch: Any) -> Any:
    """The data set gives whole batches."""
    return batch
