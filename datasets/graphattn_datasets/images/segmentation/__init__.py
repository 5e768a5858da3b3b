"""Photographs with masks: any folder in the usual layout, three published sets, and generated scenes.

Importing this package does not import torch; everything is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphattn_datasets.images.segmentation.dataset import SegmentationSet
    from graphattn_datasets.images.segmentation.folder import Skipped, find_images, find_pairs, read_folder
    from graphattn_datasets.images.segmentation.generated import generate_scenes

_HOME = {
    "SegmentationSet": "dataset",
    "Skipped": "folder",
    "find_images": "folder",
    "find_pairs": "folder",
    "generate_scenes": "generated",
    "read_folder": "folder",
}

__all__ = ["SegmentationSet", "Skipped", "find_images", "find_pairs", "generate_scenes", "read_folder"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
