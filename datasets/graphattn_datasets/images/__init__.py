"""Sets of images: scikit-learn's digits, MNIST, CIFAR-10, as tensors with fixed splits.

Importing this package does not import torch; everything is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphattn_datasets.images.dataset import ImageSet

__all__ = ["ImageSet"]


def __getattr__(name: str) -> Any:
    if name != "ImageSet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("graphattn_datasets.images.dataset").ImageSet
