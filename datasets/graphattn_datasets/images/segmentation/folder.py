"""Folders of photographs and masks, under the names that the sets of salient objects use."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.images.segmentation.read import Labels, check_labels, read_image, read_mask
from graphattn_datasets.paths import say

__all__ = ["OnError", "Pair", "Scenes", "Skipped", "find_images", "find_pairs", "read_folder", "read_pairs", "report"]

OnError = Literal["stop", "skip"]

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_LOSSY = (".jpg", ".jpeg")
# ECSSD, HKU-IS, PASCAL-S, SOD: images, imgs, Imgs; DUTS: DUTS-TR-Image; DUT-OMRON: DUT-OMRON-image; VOC: JPEGImages
_IMAGES = re.compile(r"(^|[-_ ])(images?|imgs?|jpegimages|photos?)$", re.IGNORECASE)
# ECSSD: ground_truth_mask; DUTS: DUTS-TR-Mask; HKU-IS, PASCAL-S: gt; DUT-OMRON: pixelwiseGT-new-PNG; MSRA-B: annotation
_MASKS = re.compile(
    r"((^|[-_ ])(masks?|gts?|labels?|ground[-_ ]?truths?|annotations?)|segmentationclass|segmentationobject"
    r"|pixelwisegt.*)$",
    re.IGNORECASE,
)
_SUFFIX = re.compile(r"[-_](mask|gt|label|groundtruth|ground_truth|seg|segmentation)$", re.IGNORECASE)


class Pair(NamedTuple):
    """A photograph and its mask.

    Args:
        name: The stem that they share.
        image: Its file.
        mask: Its file.
    """

    name: str
    image: Path
    mask: Path


class Skipped(NamedTuple):
    """A file that was left out.

    Args:
        path: Which.
        reason: What is wrong with it.
    """

    path: Path
    reason: str


class Scenes(NamedTuple):
    """What was read.

    Args:
        names: Of each photograph.
        images: uint8 ``[3, H, W]`` each.
        masks: int32 ``[H, W]`` each.
        skipped: What was left out.
    """

    names: list[str]
    images: list[np.ndarray]
    masks: list[np.ndarray]
    skipped: list[Skipped]


def find_images(folder: str | Path) -> list[Path]:
    """The files of a folder that are images by their name, sorted; hidden files are none.

    Raises:
        DataError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.name[0] != "." and p.is_file())


def find_pairs(
    folder: str | Path, images: str | None = None, masks: str | None = None
) -> tuple[list[Pair], list[Skipped]]:
    """Photographs and masks that belong together: those with the same stem (``cat.jpg`` and ``cat.png`` or
    ``cat_mask.png``), in two folders or in one.

    Args:
        folder: Of the set.
        images: The folder of photographs in it; ``None``: the one that is called so (``images``, ``Imgs``,
            ``DUTS-TR-Image``, ...), else ``folder`` itself.
        masks: The folder of masks in it; ``None``: the one that is called so (``masks``, ``gt``,
            ``ground_truth_mask``, ``pixelwiseGT-new-PNG``, ...), else the folder of photographs, in which JPEG files
            are then photographs and the others masks.

    Returns:
        Pairs sorted by name, and files without a partner.

    Raises:
        DataError: If there is no such folder, several are called so, or it holds no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    image_folder = _named(folder, images, _IMAGES, "images") or folder
    mask_folder = _named(folder, masks, _MASKS, "masks") or image_folder
    photos = find_images(image_folder)
    if mask_folder == image_folder:
        labels = [path for path in photos if path.suffix.lower() not in _LOSSY]
        photos = [path for path in photos if path.suffix.lower() in _LOSSY]
    else:
        labels = find_images(mask_folder)
    if not photos and not labels:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{image_folder} holds no images. Expected {folder}/images and {folder}/masks, or both in one folder; "
            f"{folder} holds {there}. Other names are told by images= and masks="
        )
    return _match(photos, labels, mask_folder)


def read_folder(
    folder: str | Path,
    labels: Labels = "binary",
    *,
    images: str | None = None,
    masks: str | None = None,
    threshold: int | None = None,
    num_classes: int | None = None,
    on_error: OnError = "stop",
) -> Scenes:
    """All photographs and masks of a folder.

    Args:
        folder: See :func:`find_pairs`.
        labels: What masks hold, see :func:`graphattn_datasets.images.segmentation.read.read_mask`.
        images: See :func:`find_pairs`.
        masks: See :func:`find_pairs`.
        threshold: See :func:`~graphattn_datasets.images.segmentation.read.read_mask`.
        num_classes: See :func:`~graphattn_datasets.images.segmentation.read.read_mask`.
        on_error: ``"stop"`` at the first file that is wrong, or ``"skip"`` those; they are listed at the end.

    Raises:
        DataError: If a file is wrong and ``on_error`` is ``"stop"``, or nothing is left.
    """
    pairs, alone = find_pairs(folder, images, masks)
    scenes = read_pairs(
        pairs, labels, threshold=threshold, num_classes=num_classes, on_error=on_error, skipped=alone, where=folder
    )
    report(scenes.skipped, len(pairs) + len(alone), str(folder))
    return scenes


def read_pairs(
    pairs: Sequence[Pair],
    labels: Labels = "binary",
    *,
    threshold: int | None = None,
    num_classes: int | None = None,
    on_error: OnError = "stop",
    skipped: Sequence[Skipped] = (),
    where: str | Path = "",
    resize: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
) -> Scenes:
    """Read photographs and masks, several at a time.

    Args:
        pairs: Which.
        labels: See :func:`read_folder`.
        threshold: See :func:`read_folder`.
        num_classes: See :func:`read_folder`.
        on_error: See :func:`read_folder`.
        skipped: What is wrong already.
        where: The folder, for messages.
        resize: Applied to each pair of arrays at once, so that large photographs are never in memory together.

    Raises:
        DataError: As :func:`read_folder`.
    """
    check_labels(labels)
    if on_error not in ("stop", "skip"):
        raise ArgumentError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
    left_out = list(skipped)
    if left_out and on_error == "stop":
        raise DataError(f"{left_out[0].path}: {left_out[0].reason}{_more(len(left_out) - 1)}")

    def one(pair: Pair) -> tuple[np.ndarray, np.ndarray] | Skipped:
        path = pair.image
        try:
            image, path = read_image(pair.image), pair.mask
            mask = read_mask(pair.mask, labels, threshold=threshold, num_classes=num_classes)
            if mask.shape != image.shape[1:]:
                sizes = [f"{width} x {height}" for height, width in (mask.shape, image.shape[1:])]
                raise DataError(f"{pair.mask} is of {sizes[0]} pixels, but its photograph {pair.image} of {sizes[1]}")
        except DataError as error:
            return Skipped(path, str(error))
        return (image, mask) if resize is None else resize(image, mask)

    scenes = Scenes([], [], [], left_out)
    with ThreadPoolExecutor() as threads:  # Pillow decodes without Python's lock
        for pair, found in zip(pairs, threads.map(one, pairs), strict=True):
            if isinstance(found, Skipped):
                if on_error == "stop":
                    threads.shutdown(cancel_futures=True)
                    raise DataError(found.reason)
                left_out.append(found)
                continue
            scenes.names.append(pair.name)
            scenes.images.append(found[0])
            scenes.masks.append(found[1])
    if not scenes.images:
        first = f"; the first: {left_out[0].reason}" if left_out else ""
        raise DataError(f"nothing is left of {where or 'the set'}: {len(left_out)} files are wrong{first}")
    return scenes


def report(skipped: Sequence[Skipped], total: int, where: str) -> None:
    """List on standard error what was left out; nothing where nothing was."""
    if skipped:
        lines = "\n".join(f"  {entry.path}: {entry.reason.removeprefix(f'{entry.path} ')}" for entry in skipped)
        say(f"skipped {len(skipped)} of {total} in {where}:\n{lines}")


def _named(folder: Path, given: str | None, habit: re.Pattern[str], what: str) -> Path | None:
    if given is not None:
        return folder / given
    found = sorted(path for path in folder.iterdir() if path.is_dir() and habit.search(path.name))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} has several folders that may hold {what}: {names}. Name one by {what}=")
    return found[0] if found else None


def _match(photos: list[Path], labels: list[Path], mask_folder: Path) -> tuple[list[Pair], list[Skipped]]:
    by_stem = {path.stem: path for path in labels}
    shortened = {_SUFFIX.sub("", path.stem): path for path in labels}
    pairs, skipped, used = [], [], set()
    for photo in photos:
        mask = by_stem.get(photo.stem) or shortened.get(photo.stem)
        if mask is None:
            skipped.append(Skipped(photo, f"has no mask of its name in {mask_folder}"))
        else:
            pairs.append(Pair(photo.stem, photo, mask))
            used.add(mask)
    skipped += [Skipped(path, "is a mask without a photograph") for path in labels if path not in used]
    return pairs, skipped


def _more(count: int) -> str:
    return f" (and {count} more like it; on_error='skip' leaves such files out)" if count > 0 else ""
