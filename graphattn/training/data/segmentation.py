"""Batches of photographs with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.data.common import free_memory, load
from graphattn.training.data.graphs import GraphDataModule
from graphattn.training.data.order import epoch_sampler

__all__ = ["SceneBatches", "SegmentationDataModule"]

_PARTS = ("train", "val", "test")


class SegmentationDataModule(GraphDataModule):
    """Batches ``{"x": float [B, 3, H, W], "y": int64 [B, H, W], "size": [(h, w), ...]}`` of photographs with masks,
    from a set with a name or from folders in the usual layout (images/ and masks/, and what ECSSD, DUTS, MSRA-B,
    HKU-IS, PASCAL-S and DUT-OMRON call them).

    Photographs of several sizes in one batch are padded below and to the right: ``x`` is 0 there, the mean, and ``y``
    is -1, which losses and metrics leave out; ``size`` says how much is photograph. All are kept in memory.

    Args:
        name: A name of ``graphattn list datasets``: ``"weizmann_horses"``, ``"isbi2012_membrane"``,
            ``"dsb2018_nuclei"``, ``"generated_scenes"``; ``None`` with ``folders``.
        folders: ``{"train": ..., "val": ..., "test": ...}``. Without ``"val"``, a part of the training set is drawn;
            without ``"test"``, the validation part is the test too.
        labels: What masks in folders hold: ``"binary"``, ``"instances"`` or ``"classes"``.
        images: The folder of photographs in each of ``folders``; ``None``: found by its name.
        masks: The folder of masks in each; ``None``: found by its name.
        threshold: Stored values above it are foreground; ``None``: binary masks must hold 0 and 1, or 0 and 255.
        num_classes: Of ``"classes"``.
        size: Height and width that everything is resized to; ``None``: as it is.
        on_error: ``"stop"`` at the first file that is wrong, or ``"skip"`` those; they are listed at the end.
        val_share: The part of the training folder that is kept for validation.
        batch_size: Photographs in a training batch.
        eval_batch_size: Photographs in a validation or test batch; ``None``: as in training.
        num_workers: Processes that make batches.
        persistent_workers: Keep them between epochs.
        pin_memory: ``None``: when training on a GPU.
        on_device: Keep the photographs on the training device and put batches together there.
        drop_last: Leave out an incomplete last training batch.
        repeats: How often an epoch has each training photograph (random crops of a few large ones, say).
        seed: Seed of the order and of the draw for validation; ``None``: the run's (``seed_everything``), and 0 for the
            draw.
        root: The folder of a set with a name; ``None``: the set's own rule.
        options: Further arguments of a set with a name, ``{"num_val": 30}`` say.

    Flips, crops and colours belong in the task's ``train_transform``
    (:class:`~graphattn.training.AugmentSegmentation`).

    Raises:
        ArgumentError: If neither a name nor a training folder is given, or both are.
    """

    def __init__(
        self,
        name: str | None = None,
        folders: dict[str, str] | None = None,
        labels: Literal["binary", "instances", "classes"] = "binary",
        images: str | None = None,
        masks: str | None = None,
        threshold: int | None = None,
        num_classes: int | None = None,
        size: list[int] | None = None,
        on_error: Literal["stop", "skip"] = "stop",
        val_share: float = 0.1,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        persistent_workers: bool = False,
        pin_memory: bool | None = None,
        on_device: bool = False,
        drop_last: bool = False,
        repeats: int = 1,
        seed: int | None = None,
        root: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if (name is None) == (folders is None):
            raise ArgumentError("SegmentationDataModule needs a name or folders, and not both")
        super().__init__(
            name or "folders",
            root,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            persistent_workers=persistent_workers,
            pin_memory=pin_memory,
            drop_last=drop_last,
            seed=seed,
            options=options,
        )
        if folders is not None and ("train" not in folders or set(folders) - set(_PARTS)):
            raise ArgumentError(f"folders must have train, and may have val and test, got {sorted(folders)}")
        if not 0.0 < val_share < 1.0:
            raise ArgumentError(f"val_share must lie in (0, 1), got {val_share}")
        if on_device and num_workers:
            raise ArgumentError(f"on_device makes batches in this process, so num_workers must be 0, got {num_workers}")
        if repeats < 1:
            raise ArgumentError(f"repeats must be at least 1, got {repeats}")
        self.folders, self.on_device, self.repeats = folders, on_device, repeats
        self._batches: dict[int, SceneBatches] = {}
        self.size, self.on_error, self.val_share = size, on_error, val_share
        self.reading: dict[str, Any] = {
            "labels": labels,
            "images": images,
            "masks": masks,
            "threshold": threshold,
            "num_classes": num_classes,
        }

    def setup(self, stage: str | None = None) -> None:
        """Read the parts."""
        if self.splits is not None:
            return
        from graphattn_datasets.images.segmentation import SegmentationSet

        if self.folders is not None:
            self.splits = self._from_folders(self.folders)
            return
        shared: dict[str, Any] = {} if self.size is None else {"size": self.size}
        shared |= {} if self.on_error == "stop" else {"on_error": self.on_error}
        splits = load(self.name, self.root, None, None, {**shared, **self.options})
        if not isinstance(getattr(splits, "train", None), SegmentationSet):
            raise ConfigError(
                f"SegmentationDataModule needs photographs with masks, and {self.name!r} has none; see graphattn list "
                "datasets"
            )
        self.splits = splits

    def _from_folders(self, folders: Mapping[str, str]) -> Any:
        from graphattn_datasets.images.segmentation import SegmentationSet

        read = {
            part: SegmentationSet.from_folder(folder, size=self.size, on_error=self.on_error, **self.reading)
            for part, folder in folders.items()
        }
        if "val" not in read:
            whole = read["train"]
            count = max(1, round(self.val_share * len(whole)))
            if count >= len(whole):
                raise ConfigError(
                    f"{folders['train']} has {len(whole)} photographs, too few to keep some for validation"
                )
            order = np.random.RandomState(self.seed or 0).permutation(len(whole)).tolist()
            read["val"], read["train"] = whole.part(sorted(order[:count])), whole.part(sorted(order[count:]))
        return SimpleNamespace(train=read["train"], val=read["val"], test=read.get("test", read["val"]))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, in an order that seed and epoch alone decide."""
        numbers = range(len(self.splits.train) * self.repeats)
        sampler = epoch_sampler(numbers, self.seed, self.trainer)
        if self.drop_last and len(sampler) < self.batch_size:
            raise ConfigError(
                f"drop_last leaves no training batch: there are {len(sampler)} photographs, batch_size is "
                f"{self.batch_size}"
            )
        options = {"sampler": sampler, "generator": sampler.generator, "drop_last": self.drop_last}
        return self._loader(self.splits.train, self.batch_size, **options)

    def _loader(self, dataset: Any, batch_size: int, **kwargs: Any) -> DataLoader:
        device = self.trainer.strategy.root_device if self.on_device and self.trainer else torch.device("cpu")
        if id(dataset) not in self._batches:
            self._batches[id(dataset)] = SceneBatches(dataset, device)
        options = self._loader_options(**kwargs)
        options["pin_memory"] = options["pin_memory"] and device.type == "cpu"
        together = self._batches[id(dataset)]
        numbers: Any = range(len(dataset) * self.repeats)
        return DataLoader(numbers, batch_size=batch_size, collate_fn=together, **options)


class SceneBatches:
    """Makes a batch of a list of numbers, on the device that holds the photographs.

    Args:
        dataset: A :class:`~graphattn_datasets.images.segmentation.SegmentationSet`.
        device: Where.

    Raises:
        ConfigError: If the set does not fit the device.
    """

    def __init__(self, dataset: Any, device: torch.device) -> None:
        needed = sum(image.nbytes + mask.nbytes for image, mask in zip(dataset.images, dataset.masks, strict=True))
        free = free_memory(device)
        if free is not None and needed > 0.8 * free:
            raise ConfigError(
                f"the photographs take {needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB free: set "
                "on_device to false, or a size"
            )
        self.sizes: list[tuple[int, int]] = [tuple(mask.shape) for mask in dataset.masks]
        self.device = device
        self.images: Tensor | Sequence[Tensor]
        self.masks: Tensor | Sequence[Tensor]
        if len(set(self.sizes)) == 1:
            self.images, self.masks = torch.stack(dataset.images).to(device), torch.stack(dataset.masks).to(device)
        else:
            self.images = [image.to(device) for image in dataset.images]
            self.masks = [mask.to(device) for mask in dataset.masks]

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The batch of these photographs, in this order; after the last number they begin again."""
        numbers = [n % len(self.sizes) for n in numbers]
        from graphattn_datasets.images.segmentation.dataset import normalize

        sizes = [self.sizes[n] for n in numbers]
        if isinstance(self.images, Tensor) and isinstance(self.masks, Tensor):
            chosen = torch.tensor(numbers, device=self.device)
            x, y = normalize(self.images[chosen]), self.masks[chosen].long()
        else:
            height, width = (max(side) for side in zip(*sizes, strict=True))
            x = torch.zeros(len(numbers), 3, height, width, device=self.device)
            y = torch.full((len(numbers), height, width), -1, device=self.device)
            for place, n in enumerate(numbers):
                rows, columns = self.sizes[n]
                x[place, :, :rows, :columns] = normalize(self.images[n])
                y[place, :rows, :columns] = self.masks[n]
        return {"x": x, "y": y, "size": sizes}
