"""Photographs and masks in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from graphattn.errors import ArgumentError
from graphattn_datasets.images.segmentation.folder import OnError, Scenes, Skipped, find_pairs, read_pairs, report
from graphattn_datasets.images.segmentation.read import Labels, check_labels
from graphattn_datasets.info import DatasetInfo

__all__ = ["MEAN", "STD", "SegmentationSet", "normalize", "resize_pair"]

# Of ImageNet, which pretrained backbones expect; white is 1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class SegmentationSet(Dataset):
    """Photographs with masks. An item is a dict of ``x`` (float ``[3, H, W]``, in ImageNet's mean and deviation) and
    ``y`` (int64 ``[H, W]``).

    Args:
        images: uint8 ``[3, H, W]`` each, of any size.
        masks: Whole numbers ``[H, W]`` each.
        names: Of each photograph; ``None``: its number.
        labels: What masks hold: ``"binary"`` (0 and 1), ``"instances"`` (0 and instance numbers) or ``"classes"``
            (-1: none).
        skipped: Files that were left out.
        transform: Applied to each item.

    Raises:
        ArgumentError: If images and masks do not fit together.
    """

    info: DatasetInfo
    exactness = ""

    def __init__(
        self,
        images: Sequence[np.ndarray | Tensor],
        masks: Sequence[np.ndarray | Tensor],
        names: Sequence[str] | None = None,
        labels: Labels = "binary",
        *,
        skipped: Sequence[Skipped] = (),
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        check_labels(labels)
        if len(images) != len(masks):
            raise ArgumentError(f"images and masks must be as many, got {len(images)} and {len(masks)}")
        self.images = [torch.as_tensor(image) for image in images]
        self.masks = [torch.as_tensor(mask).to(torch.int32) for mask in masks]
        for number, (image, mask) in enumerate(zip(self.images, self.masks, strict=True)):
            if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[1:] != mask.shape:
                raise ArgumentError(
                    f"images must be uint8 [3, H, W] and masks [H, W], got {image.dtype} {list(image.shape)} and "
                    f"{list(mask.shape)} at {number}"
                )
        self.names = [str(number) for number in range(len(images))] if names is None else list(names)
        self.labels, self.skipped, self.transform = labels, list(skipped), transform

    @classmethod
    def from_folder(
        cls,
        folder: str,
        labels: Labels = "binary",
        *,
        size: Sequence[int] | None = None,
        images: str | None = None,
        masks: str | None = None,
        threshold: int | None = None,
        num_classes: int | None = None,
        on_error: OnError = "stop",
        transform: Callable[[Any], Any] | None = None,
    ) -> SegmentationSet:
        """The set of a folder in the usual layout.

        Args:
            folder: See :func:`graphattn_datasets.images.segmentation.find_pairs`.
            labels: See above.
            size: Height and width that everything is resized to; ``None``: as it is.
            images: The folder of photographs in it; ``None``: found by its name.
            masks: The folder of masks in it; ``None``: found by its name.
            threshold: For ``"binary"``: stored values above it are foreground; ``None``: masks must hold 0 and 1, or 0
                and 255.
            num_classes: For ``"classes"``: how many there are.
            on_error: ``"stop"`` at the first file that is wrong, or ``"skip"`` those; they are listed at the end.
            transform: Applied to each item.

        Raises:
            DataError: If a file is wrong and ``on_error`` is ``"stop"``, or nothing is left.
        """
        pairs, alone = find_pairs(folder, images, masks)
        scenes = read_pairs(
            pairs,
            labels,
            threshold=threshold,
            num_classes=num_classes,
            on_error=on_error,
            skipped=alone,
            where=folder,
            resize=resizer(size, labels),
        )
        report(scenes.skipped, len(pairs) + len(alone), str(folder))
        return cls.of(scenes, labels, transform)

    @classmethod
    def of(cls, scenes: Scenes, labels: Labels, transform: Callable[[Any], Any] | None = None) -> SegmentationSet:
        """The set of what was read."""
        return cls(scenes.images, scenes.masks, scenes.names, labels, skipped=scenes.skipped, transform=transform)

    def part(self, numbers: Sequence[int]) -> SegmentationSet:
        """The set of some of the photographs."""
        images, masks = ([values[n] for n in numbers] for values in (self.images, self.masks))
        names = [self.names[n] for n in numbers]
        part = SegmentationSet(images, masks, names, self.labels, skipped=self.skipped, transform=self.transform)
        part.exactness = self.exactness
        return part

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"x": normalize(self.images[index]), "y": self.masks[index].long()}
        return item if self.transform is None else self.transform(item)

    def __repr__(self) -> str:
        name = self.info.name if hasattr(self, "info") else type(self).__name__
        return f"{name}({len(self)} photographs, labels {self.labels!r})"


def normalize(pixels: Tensor) -> Tensor:
    """uint8 ``[..., 3, H, W]`` in ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def resizer(
    size: Sequence[int] | None, labels: Labels
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """:func:`resize_pair` to one size, on arrays; ``None`` where sizes stay.

    Raises:
        ArgumentError: If the size is not two positive numbers.
    """
    if size is None:
        return None
    if len(size) != 2 or min(size) < 1:
        raise ArgumentError(f"size must be height and width in pixels, got {list(size)}")

    def resize(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels, values = resize_pair(torch.from_numpy(image), torch.from_numpy(mask), size, labels)
        return pixels.numpy(), values.numpy()

    return resize


def resize_pair(image: Tensor, mask: Tensor, size: Sequence[int], labels: Labels) -> tuple[Tensor, Tensor]:
    """A photograph and its mask in another size: bilinear over all pixels below; binary masks then cut at one half,
    others take the nearest label.

    Args:
        image: uint8 ``[3, H, W]``.
        mask: ``[H, W]``.
        size: Height and width.
        labels: What the mask holds.
    """
    target = list(size)
    pixels = F.interpolate(image[None].float(), target, mode="bilinear", antialias=True)[0]
    if labels == "binary":
        values = F.interpolate(mask[None, None].float(), target, mode="bilinear", antialias=True)[0, 0] >= 0.5
    else:
        values = F.interpolate(mask[None, None].double(), target, mode="nearest-exact")[0, 0]
    return pixels.round().clamp(0, 255).to(torch.uint8), values.to(mask.dtype)
