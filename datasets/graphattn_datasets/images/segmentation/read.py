"""One photograph or one mask from a file, with one clear error for each way in which it can be wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphattn.errors import ArgumentError, DataError
from graphattn.optional import require

__all__ = ["LABELS", "Labels", "check_labels", "read_image", "read_mask"]

Labels = Literal["binary", "instances", "classes"]
LABELS: tuple[Labels, ...] = ("binary", "instances", "classes")
IGNORED = 255  # the label of pixels without a class, in sets of classes (Pascal VOC's habit)


def check_labels(labels: str) -> None:
    """Say what is wrong with a kind of labels.

    Raises:
        ArgumentError: If there is none of that name.
    """
    if labels not in LABELS:
        raise ArgumentError(f"labels must be one of {LABELS}, got {labels!r}")


def read_image(path: str | Path) -> np.ndarray:
    """A photograph as it is meant to be looked at (EXIF orientation applied), in three channels also if it is grey.

    Args:
        path: Any format that Pillow reads.

    Returns:
        uint8 ``[3, H, W]``; 16-bit greys are scaled to 8 bits, transparency is dropped.

    Raises:
        DataError: If the file cannot be read as an image.
        MissingPackageError: If Pillow is not installed.
    """
    with _opened(path) as picture:
        pixels = _decode(path, picture)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype in ("<u2", ">u2") or (picture.format == "PPM" and pixels.dtype == np.int32):
        pixels = (pixels // 257).astype(np.uint8)  # Pillow holds the greys of a PGM of 16 bits in 32
    if pixels.dtype != np.uint8:
        raise DataError(f"{path} must hold 8 or 16 bits a channel, got {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] in (1, 2):  # grey, with transparency perhaps
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1))


def read_mask(
    path: str | Path, labels: Labels = "binary", *, threshold: int | None = None, num_classes: int | None = None
) -> np.ndarray:
    """A mask as whole numbers.

    Args:
        path: Any lossless format that Pillow reads.
        labels: ``"binary"``: the file holds 0 and 1, or 0 and 255. ``"instances"``: 0 is the background, every other
            number one object; in a palette of colours its indices are the numbers, and 255 is none. ``"classes"``: a
            class for each pixel; 255 is none.
        threshold: For ``"binary"``: stored values above it are foreground (masks that were saved as JPEG, or drawn by
            several people). ``None``: every other value than 0, 1 and 255 is an error.
        num_classes: For ``"classes"``: how many there are, if that is known.

    Returns:
        int32 ``[H, W]``: 0 and 1; 0 and instance numbers; or classes. -1 where there is none.

    Raises:
        DataError: If the file cannot be read as an image, or holds other values.
        MissingPackageError: If Pillow is not installed.
    """
    with _opened(path) as picture:
        indexed = labels == "classes" or (labels == "instances" and _has_colours(picture))
        pixels = _decode(path, picture, indices=indexed)
    if pixels.ndim == 3:  # greys in colour channels, which some sets have
        colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
        if not (colours == colours[..., :1]).all():
            raise DataError(f"{path} must hold one number a pixel, got colours; is it a mask?")
        pixels = colours[..., 0]
    values = pixels.astype(np.int32)
    if labels == "binary" and threshold is not None:
        return (pixels > threshold).astype(np.int32)
    if not (values == pixels).all():
        raise DataError(f"{path} must hold whole numbers, got {pixels[values != pixels][0]}")
    if labels == "binary":
        return _binary(path, values)
    if indexed:
        values = np.where(values == IGNORED, -1, values).astype(np.int32)
    if labels == "classes" and num_classes is not None and values.max(initial=0) >= num_classes:
        raise DataError(f"{path} must hold classes 0 to {num_classes - 1} ({IGNORED}: none), got {int(values.max())}")
    return values


def _has_colours(picture: Any) -> bool:
    """Whether it has a palette, and not one of greys: then it is drawn to be told apart (Pascal VOC's habit)."""
    colours = np.array(picture.getpalette() if picture.mode == "P" else []).reshape(-1, 3)
    return bool((colours != colours[:, :1]).any())


def _binary(path: str | Path, values: np.ndarray) -> np.ndarray:
    found = np.unique(values)
    if not (set(found.tolist()) <= {0, 1} or set(found.tolist()) <= {0, 255}):
        some = ", ".join(str(value) for value in found[:5].tolist()) + (", ..." if len(found) > 5 else "")
        raise DataError(
            f"{path} must hold the labels 0 and 1 (or 0 and 255), got {len(found)} values: {some}. "
            "If greys are meant, give a threshold; if they number objects, labels='instances'"
        )
    return (values > 0).astype(np.int32)


def _opened(path: str | Path) -> Any:
    image = require("PIL.Image", extra="images", purpose="reading images")
    try:
        return image.open(path)
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _decode(path: str | Path, picture: Any, indices: bool = False) -> np.ndarray:
    operations = require("PIL.ImageOps", extra="images", purpose="reading images")
    image = require("PIL.Image", extra="images", purpose="reading images")
    try:
        if picture.mode not in ("1", "L", "LA", "RGB", "RGBA") and not picture.mode.startswith("I;16"):
            # Palettes of masks may be class numbers; everything else (CMYK, YCbCr, ...) is seen as a photograph.
            if not (indices and picture.mode == "P") and picture.mode not in ("I", "F"):
                picture = picture.convert("RGB")
        return np.asarray(operations.exif_transpose(picture))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, zlib.error, struct.error) as error:
        raise _unreadable(path, error) from error
    except image.DecompressionBombError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> DataError:
    reason = str(error).replace(f" '{path}'", "").replace(f" {str(path)!r}", "")
    return DataError(f"{path} cannot be read as an image ({type(error).__name__}: {reason})")
