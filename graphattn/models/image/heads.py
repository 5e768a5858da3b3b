"""What a segmentation network predicts for each pixel, and how masks and instances are read from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.mechanisms.connectivity import (
    agreed_edges,
    bilateral_vote,
    connectivity_labels,
    instances,
    mutual_agreement,
)

__all__ = ["HEADS", "Reading", "check_head", "num_logits", "read_logits"]

HEADS = ("binary", "connectivity", "instances")


class Reading(NamedTuple):
    """What logits say.

    Args:
        saliency: Float in 0..1, ``[B, H, W]``; with several classes ``[B, C, H, W]``.
        mask: int64 ``[B, H, W]``: 0 and 1, or the class.
        edges: uint8 ``[B, H, W]``: bit c where the pixel and its neighbour of channel c agree to be connected (of any
            class but the background).
        instances: int32 ``[B, H, W]``: 0, or the number of the connected component.
    """

    saliency: Tensor
    mask: Tensor
    edges: Tensor
    instances: Tensor


def check_head(head: str, num_classes: int, neighbours: int) -> None:
    """Say what is wrong with a head.

    Raises:
        ArgumentError: If there is none of that name, or it cannot have so many classes or neighbours.
    """
    if head not in HEADS:
        raise ArgumentError(f"head must be one of {HEADS}, got {head!r}")
    if neighbours not in (4, 8):
        raise ArgumentError(f"neighbours must be 4 or 8, got {neighbours!r}")
    if num_classes < 1 or (head == "instances" and num_classes > 1):
        raise ArgumentError(
            f"num_classes must be at least 1, and 1 with head 'instances', got {num_classes} with {head!r}"
        )


def num_logits(head: str, num_classes: int, neighbours: int) -> int:
    """Channels of the prediction."""
    return num_classes if head == "binary" else num_classes * neighbours


def read_logits(
    logits: Tensor, head: str, num_classes: int = 1, neighbours: int = 8, *, at: float = 0.5, min_pixels: int = 1
) -> Reading:
    """Masks, saliency and instances.

    A connectivity head is read by mutual agreement (ConnNet, arXiv 1804.07836): an edge is on where both of its ends
    say so with more than ``at``, and a pixel with an edge is foreground. The saliency is the bilateral vote of
    BiconNet, the largest product of both ends' probabilities; with several classes the largest saliency wins. Instances
    are the connected components of the edges that are on; of a binary head, of the edges within its mask.

    Args:
        logits: ``[B, channels, H, W]``.
        head: One of :data:`HEADS`.
        num_classes: Of the head.
        neighbours: Of the head.
        at: Threshold of probabilities.
        min_pixels: Smaller components are no instances; the mask keeps them.

    Raises:
        ArgumentError: If the channels do not fit the head.
    """
    channels = num_logits(head, num_classes, neighbours)
    if logits.dim() != 4 or logits.shape[1] != channels:
        raise ArgumentError(f"logits must be [B, {channels}, H, W] with head {head!r}, got {list(logits.shape)}")
    if head == "binary":
        saliency, mask = _binary(logits, num_classes, at)
        joined = torch.zeros_like(mask, dtype=torch.bool).unsqueeze(1).expand(-1, neighbours, -1, -1)
        for number in range(1, max(2, num_classes)):
            joined = joined | connectivity_labels(mask == number, neighbours)
    else:
        cube = logits.unflatten(1, (num_classes, neighbours))
        saliency = bilateral_vote(cube)
        if num_classes == 1:
            saliency, cube = saliency.squeeze(1), cube.squeeze(1)
            bits = agreed_edges(cube, threshold=at)
            found = instances(cube, at, min_pixels=min_pixels)
            return Reading(saliency, (bits != 0).long(), bits, found.labels)
        mask = saliency.argmax(1)
        joined = mutual_agreement(cube[:, 1:], at).any(1)
    agreed = joined.to(torch.float32)
    found = instances(agreed, logits=False, min_pixels=min_pixels)
    return Reading(saliency, mask, agreed_edges(agreed, logits=False), found.labels)


def _binary(logits: Tensor, num_classes: int, at: float) -> tuple[Tensor, Tensor]:
    if num_classes == 1:
        saliency = logits.sigmoid().squeeze(1)
        return saliency, (saliency > at).long()
    saliency = logits.softmax(1)
    return saliency, saliency.argmax(1)
