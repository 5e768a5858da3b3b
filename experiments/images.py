"""Which images of a test set are looked at."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["evenly"]


def evenly(size: int, count: int) -> Tensor:
    """int64: so many of ``size`` places, evenly from the first to the last; all if there are fewer.

    The first ones alone may be of one class: CIFAR-10's file of JPEG images has one class after another.
    """
    return torch.linspace(0, size - 1, min(count, size)).round().long()
