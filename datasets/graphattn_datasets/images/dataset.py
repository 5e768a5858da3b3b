"""Images and labels with fixed training, validation and test parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graphattn.errors import ArgumentError
from graphattn_datasets.images.files import Arrays, read_cifar10, read_digits, read_mnist
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.paths import cache_root

__all__ = ["ImageSet", "make"]


class _Kind(NamedTuple):
    """How one set is stored, and the sizes of our split."""

    peak: float  # the brightest value
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_val: int
    num_test: int  # 0: the set has an official test part


# Means and deviations of the training parts; digits' measured here over all images.
_KINDS = {
    "digits": _Kind(16.0, (0.3053,), (0.3760,), 360, 360),
    "mnist": _Kind(255.0, (0.1307,), (0.3081,), 5000, 0),
    "cifar10": _Kind(255.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 5000, 0),
}


class ImageSet(Dataset):
    """Images as float ``[C, H, W]``, each channel of mean 0 and deviation 1 over the data set, with labels.

    An item, and what a list of numbers gives (``__getitems__``, one tensor operation for a whole batch), is a dict of
    ``x`` (images) and ``y`` (int64 labels).

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        peak: The stored value of white.
        mean: Of each channel, where white is 1.
        std: Of each channel.
        transform: Applied to each item or batch.
    """

    info: DatasetInfo
    exactness = ""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        peak: float = 255.0,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or labels.shape != images.shape[:1]:
            raise ArgumentError(
                f"images must be uint8 [N, C, H, W] and labels [N], got {images.dtype} {list(images.shape)} and "
                f"{list(labels.shape)}"
            )
        self.images, self.labels, self.transform = images, labels, transform
        self.peak = peak
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> dict[str, Tensor]:
        x = (self.images[index].float() / self.peak - self.mean) / self.std
        item = {"x": x, "y": self.labels[index]}
        return item if self.transform is None else self.transform(item)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self[torch.tensor(indices)]

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set with images and labels on a device; items are made there."""
        moved = copy(self)
        moved.images, moved.labels = self.images.to(device), self.labels.to(device)
        moved.mean, moved.std = self.mean.to(device), self.std.to(device)
        return moved

    def pixels(self, x: Tensor) -> Tensor:
        """The images of :meth:`__getitem__` with black as 0 and white as 1, for pictures."""
        return (x * self.std.to(x) + self.mean.to(x)).clamp(0, 1)

    def __repr__(self) -> str:
        name = self.info.name if hasattr(self, "info") else type(self).__name__
        return f"{name}({len(self)} images of {' x '.join(map(str, self.images.shape[1:]))})"


def make(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    num_val: int | None = None,
    split_seed: int = 0,
) -> ImageSet:
    """One part of a set of images, for :func:`graphattn_datasets.load_dataset`.

    Args:
        info: Which.
        root: Where downloads go; default ``$GRAPHATTN_CACHE/images/<name>``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: Not for images.
        num_val: Images of the training set that are kept for validation; default: 5,000 (digits: 360).
        split_seed: Which ones (digits: and which are for the test).

    Raises:
        ArgumentError: If there is a ``pre_transform``, or ``num_val`` leaves nothing to train with.
    """
    if pre_transform is not None:
        raise ArgumentError(f"pre_transform must be None for the images of {info.name!r}, got {pre_transform!r}")
    kind, part = _KINDS[info.name], "test" if split == "test" else "train"
    folder = Path(cache_root(root, f"images/{info.name}"))
    if info.name == "digits":
        found = read_digits()
    else:
        found = (read_mnist if info.name == "mnist" else read_cifar10)(part, folder)
    images = _part(found, str(split), kind, kind.num_val if num_val is None else num_val, split_seed)
    dataset = ImageSet(*images, peak=kind.peak, mean=kind.mean, std=kind.std, transform=transform)
    dataset.exactness = found.exactness or info.exactness
    return dataset


def _part(found: Arrays, split: str, kind: _Kind, num_val: int, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = torch.from_numpy(found.images.copy()), torch.from_numpy(found.labels.copy())
    if split == "test" and not kind.num_test:
        return images, labels
    count = len(labels)
    if not 1 <= num_val < count - kind.num_test:
        raise ArgumentError(f"num_val must be 1 to {count - kind.num_test - 1}, got {num_val}")
    # RandomState, whose numbers will never change.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    test, val, train = order.split([kind.num_test, num_val, count - kind.num_test - num_val])
    chosen = {"train": train, "val": val, "test": test}[split]
    chosen = chosen.sort().values
    return images[chosen], labels[chosen]
