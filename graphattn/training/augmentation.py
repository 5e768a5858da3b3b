"""Random changes of training images, on whole batches and on the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch_geometric.transforms import BaseTransform

from graphattn.errors import ArgumentError

__all__ = ["RandomCrop", "RandomFlip"]


class RandomCrop(BaseTransform):
    """Shift each image by up to ``padding`` pixels in both directions: pad, then crop to its size at a random place.

    Args:
        padding: Pixels on each side.
        fill: What is padded with, in the normalised values of the batch; 0 is the mean of the data set.

    Raises:
        ArgumentError: If ``padding`` is negative.
    """

    def __init__(self, padding: int = 4, fill: float = 0.0) -> None:
        if padding < 0:
            raise ArgumentError(f"padding must be 0 or more, got {padding}")
        self.padding, self.fill = padding, fill

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """A batch ``{"x": [B, C, H, W], ...}`` with other images; randomness from torch's global generator."""
        x = data["x"]
        count, channels, height, width = x.shape
        shift = torch.randint(0, 2 * self.padding + 1, (2, count, 1), device=x.device)
        rows = (shift[0] + torch.arange(height, device=x.device)).view(count, 1, height, 1)
        columns = (shift[1] + torch.arange(width, device=x.device)).view(count, 1, 1, width)
        image = torch.arange(count, device=x.device).view(count, 1, 1, 1)
        channel = torch.arange(channels, device=x.device).view(1, channels, 1, 1)
        padded = F.pad(x, [self.padding] * 4, value=self.fill)
        return {**data, "x": padded[image, channel, rows, columns]}


class RandomFlip(BaseTransform):
    """Mirror each image left to right with probability ``p``.

    Args:
        p: Probability.

    Raises:
        ArgumentError: If it is none.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise ArgumentError(f"p must be a probability in 0..1, got {p}")
        self.p = p

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """A batch ``{"x": [B, C, H, W], ...}`` with other images; randomness from torch's global generator."""
        x = data["x"]
        flipped = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < self.p
        return {**data, "x": x.flip(-1).where(flipped, x)}
