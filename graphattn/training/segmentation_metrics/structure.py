"""Figures of masks: their boundaries, and their number of pieces."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from graphattn.errors import ArgumentError
from graphattn.training.segmentation_metrics.base import ImageMean, binary, check_maps
from graphattn_kernels import connected_components
from graphattn_kernels._grid import OFFSETS, shifted

__all__ = ["BettiError", "BoundaryF"]


class BoundaryF(ImageMean):
    """F1 of boundary pixels, each of which may lie a few pixels off (the F of DAVIS: Perazzi et al., CVPR 2016).

    Two empty boundaries count 1, one empty one 0.

    Args:
        tolerance: Distance in pixels, or below 1 a share of the diagonal, rounded up (DAVIS: 0.008).
        threshold: What a map must exceed to be foreground.
    """

    def __init__(self, tolerance: float = 0.008, *, threshold: float = 0.5) -> None:
        super().__init__()
        if not tolerance > 0:
            raise ArgumentError(f"tolerance must be positive, got {tolerance}")
        self.tolerance, self.threshold = tolerance, threshold

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Add a batch: map (or bool mask) and mask, ``[B, H, W]``."""
        ours, theirs = _masks(prediction, mask, self.threshold)
        size = ours.shape[-2:]
        radius = int(self.tolerance) if self.tolerance >= 1 else math.ceil(self.tolerance * math.hypot(*size))
        a, b = _boundary(ours), _boundary(theirs)
        near_a, near_b = _dilated(a, radius), _dilated(b, radius)

        def share(x: Tensor, near: Tensor) -> Tensor:
            return (x & near).sum((1, 2), dtype=torch.float64) / x.sum((1, 2)).clamp(min=1)

        precision, recall = share(a, near_b), share(b, near_a)
        none_a, none_b = ~a.flatten(1).any(1), ~b.flatten(1).any(1)
        f = 2 * precision * recall / torch.where(precision + recall > 0, precision + recall, 1.0)
        self.add(torch.where(none_a & none_b, 1.0, f))


class BettiError(ImageMean):
    """Difference of the numbers of connected components of two masks, absolute, averaged over whole images (Betti 0).

    Args:
        neighbours: 8 or 4: what is connected.
        threshold: What a map must exceed to be foreground.
    """

    higher_is_better = False

    def __init__(self, neighbours: int = 8, *, threshold: float = 0.5) -> None:
        super().__init__()
        if neighbours not in OFFSETS:
            raise ArgumentError(f"neighbours must be 4 or 8, got {neighbours!r}")
        self.neighbours, self.threshold = neighbours, threshold

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Add a batch: map (or bool mask) and mask, ``[B, H, W]``."""
        ours, theirs = _masks(prediction, mask, self.threshold)
        both = torch.stack([ours, theirs])
        bits = torch.zeros_like(both, dtype=torch.uint8)
        for c, step in enumerate(OFFSETS[self.neighbours]):
            bits += (both & shifted(both, *step)).to(torch.uint8) << c
        _, pieces = connected_components(bits, neighbours=self.neighbours)
        alone = (both & (bits == 0)).sum((2, 3))  # a single pixel is a piece without an edge
        pieces = pieces + alone
        self.add((pieces[0] - pieces[1]).abs())


def _masks(prediction: Tensor, mask: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    found = binary(prediction, threshold)
    _, truth = check_maps(found.float(), mask)
    return found.reshape(truth.shape), truth


def _boundary(mask: Tensor) -> Tensor:
    """Pixels that differ from the one to their right, below, or both; in the last row and column, as in DAVIS' code."""
    right, below, across = shifted(mask, 0, 1), shifted(mask, 1, 0), shifted(mask, 1, 1)
    found = (mask ^ right) | (mask ^ below) | (mask ^ across)
    found[:, -1] = mask[:, -1] ^ right[:, -1]
    found[:, :, -1] = mask[:, :, -1] ^ below[:, :, -1]
    found[:, -1, -1] = False
    return found


def _dilated(mask: Tensor, radius: int) -> Tensor:
    step = torch.arange(-radius, radius + 1, device=mask.device)
    disk = (step[:, None] ** 2 + step**2 <= radius**2).float()
    return F.conv2d(mask[:, None].float(), disk[None, None], padding=radius).squeeze(1) > 0.5
