"""Horses, cell membranes and cell nuclei from ``$GRAPHATTN_DATA``, and generated scenes, each in three parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.images.segmentation.dataset import SegmentationSet, resizer
from graphattn_datasets.images.segmentation.folder import OnError, Pair, Scenes, find_pairs, read_pairs, report
from graphattn_datasets.images.segmentation.generated import generate_scenes
from graphattn_datasets.images.segmentation.read import Labels
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.paths import DATA_VARIABLE, data_folder, data_setting

__all__ = ["make_dsb2018_nuclei", "make_generated_scenes", "make_isbi2012_membrane", "make_weizmann_horses"]


class _Split(NamedTuple):
    """Numbers of photographs, sorted by name, in each part."""

    train: Sequence[int]
    val: Sequence[int]
    test: Sequence[int]

    def of(self, part: str | None) -> Sequence[int]:
        return getattr(self, str(part))  # type: ignore[no-any-return]


def make_weizmann_horses(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    size: Sequence[int] | None = None,
    num_val: int = 20,
    split_seed: int = 0,
    on_error: OnError = "stop",
) -> SegmentationSet:
    """One part of the Weizmann horses: by habit the first 200 are for training and the last 128 for the test; of the
    200, ``num_val`` are kept for validation.

    Args:
        info: Which set.
        root: The folder of the set; default ``$GRAPHATTN_DATA/weizmann_horses``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: None.
        size: Height and width that everything is resized to; ``None``: as it is.
        num_val: Photographs for validation.
        split_seed: Which ones.
        on_error: See :func:`graphattn_datasets.images.segmentation.read_folder`.
    """
    pairs = _pairs(info, root, pre_transform)
    habit = range(min(200, len(pairs) * 200 // 328))
    train, val = _draw(len(habit), num_val, split_seed)
    numbers = _Split(train, val, range(len(habit), len(pairs)))
    return _read(info, [pairs[n] for n in numbers.of(split)], "binary", size, on_error, transform)


def make_isbi2012_membrane(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    size: Sequence[int] | None = None,
    foreground: Literal["membrane", "cells"] = "membrane",
    num_val: int = 4,
    num_test: int = 6,
    on_error: OnError = "stop",
) -> SegmentationSet:
    """One part of the 30 slices of ISBI 2012 that have labels. Neighbouring slices look alike, so parts are runs of
    slices: the last ``num_test`` are for the test, the ``num_val`` before them for validation.

    Args:
        info: Which set.
        root: The folder of the set; default ``$GRAPHATTN_DATA/isbi2012_membrane``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: None.
        size: Height and width that everything is resized to; ``None``: as it is.
        foreground: ``"membrane"``: binary masks of the membranes. ``"cells"``: instances, the pieces that the membranes
            leave (pixels that share a side).
        num_val: Slices for validation.
        num_test: Slices for the test.
        on_error: See :func:`graphattn_datasets.images.segmentation.read_folder`.
    """
    if foreground not in ("membrane", "cells"):
        raise ArgumentError(f"foreground must be 'membrane' or 'cells', got {foreground!r}")
    pairs = _pairs(info, root, pre_transform)
    left = len(pairs) - num_val - num_test
    if min(left, num_val, num_test) < 1:
        raise ArgumentError(f"num_val and num_test must leave slices for training, got {num_val} and {num_test}")
    numbers = _Split(range(left), range(left, left + num_val), range(left + num_val, len(pairs)))
    found = _read(info, [pairs[n] for n in numbers.of(split)], "binary", size, on_error, transform)
    if foreground == "membrane":
        found.masks = [1 - mask for mask in found.masks]  # stored: 1 is the inside of a cell
    else:
        found.masks = [torch.from_numpy(ndimage.label(mask.numpy())[0].astype(np.int32)) for mask in found.masks]
        found.labels = "instances"
    return found


def make_dsb2018_nuclei(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    size: Sequence[int] | None = None,
    num_val: int = 50,
    num_test: int = 150,
    split_seed: int = 0,
    on_error: OnError = "stop",
) -> SegmentationSet:
    """One part of the nuclei of the Data Science Bowl 2018 (stage 1, corrected, up to 360 pixels a side), with an
    instance number for each nucleus. There is no official split; ours is a draw.

    Args:
        info: Which set.
        root: The folder of the set; default ``$GRAPHATTN_DATA/dsb2018_nuclei``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: None.
        size: Height and width that everything is resized to; ``None``: as it is.
        num_val: Photographs for validation.
        num_test: Photographs for the test.
        split_seed: Which ones.
        on_error: See :func:`graphattn_datasets.images.segmentation.read_folder`.
    """
    pairs = _pairs(info, root, pre_transform)
    rest, test = _draw(len(pairs), num_test, split_seed)
    train, val = _draw(len(rest), num_val, split_seed)
    numbers = _Split([rest[n] for n in train], [rest[n] for n in val], test)
    return _read(info, [pairs[n] for n in numbers.of(split)], "instances", size, on_error, transform)


def make_generated_scenes(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    size: int = 64,
    num_images: Sequence[int] = (4000, 500, 500),
    kinds: Sequence[str] = ("blob", "polygon", "curve"),
    seed: int = 0,
) -> SegmentationSet:
    """One part of the generated scenes (:func:`graphattn_datasets.images.segmentation.generate_scenes`).

    Args:
        info: Which set.
        root: Not needed.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: None.
        size: Pixels of a side.
        num_images: Of each part.
        kinds: What is drawn.
        seed: Of the scenes; each part has other ones.
    """
    if pre_transform is not None:
        raise ArgumentError(f"pre_transform must be None for {info.name!r}, got {pre_transform!r}")
    if len(num_images) != 3 or min(num_images) < 1:
        raise ArgumentError(f"num_images must be three numbers of 1 or more, got {list(num_images)}")
    part = ("train", "val", "test").index(str(split))
    images, masks = generate_scenes(num_images[part], size, kinds=kinds, seed=[seed, part])
    found = SegmentationSet(list(images), list(masks), labels="instances", transform=transform)
    found.exactness = info.exactness
    return found


def _pairs(info: DatasetInfo, root: str | None, pre_transform: Any) -> list[Pair]:
    if pre_transform is not None:
        raise ArgumentError(f"pre_transform must be None for {info.name!r}, got {pre_transform!r}")
    shared = data_folder()
    folder = Path(root).expanduser() if root else None if shared is None else shared / info.data_path
    if folder is None or not folder.is_dir():
        raise DataError(
            f"{info.name} is not here, and nothing is downloaded. Get it ({info.source}) and put image/ and its masks "
            f"into {folder or f'${DATA_VARIABLE}/{info.data_path} ({data_setting()})'}"
        )
    pairs, alone = find_pairs(folder)
    if alone:
        raise DataError(f"{alone[0].path} {alone[0].reason}; get {info.name} again")
    return pairs


def _read(
    info: DatasetInfo, pairs: list[Pair], labels: Labels, size: Sequence[int] | None, on_error: OnError, transform: Any
) -> SegmentationSet:
    scenes: Scenes = read_pairs(pairs, labels, on_error=on_error, where=info.name, resize=resizer(size, labels))
    report(scenes.skipped, len(pairs), info.name)
    found = SegmentationSet.of(scenes, labels, transform)
    found.exactness = info.exactness
    return found


def _draw(total: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """The others, and a draw of ``count`` of ``total`` numbers, both sorted."""
    if not 1 <= count < total:
        raise ArgumentError(f"a part must have 1 to {total - 1} photographs, got {count}")
    order = np.random.RandomState(seed).permutation(total)  # whose numbers will never change
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())
