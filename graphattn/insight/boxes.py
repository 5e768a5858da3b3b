"""Does relevance lie where the object is?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn_datasets.metrics import average_precision, roc_auc

__all__ = ["BoxScores", "box_scores"]


class BoxScores(NamedTuple):
    """Relevance as a classifier of the pixels inside an image's box, fractions, the mean over images.

    Args:
        roc_auc: Area under the ROC curve.
        average_precision: Area under the precision-recall curve.
    """

    roc_auc: float
    average_precision: float


def box_scores(relevance: Tensor, boxes: Tensor, size: tuple[int, int]) -> BoxScores:
    """How well relevance tells the pixels inside a box from those outside (as Roffo et al., arXiv 2603.00175, table of
    bounding boxes; how they handle resolution is not stated in what could be read).

    Args:
        relevance: ``[B, rows, columns]`` of patches, which divide the image; each pixel has that of its patch.
        boxes: ``[B, 4]`` first and last column and row in pixels: left, top, right, bottom, the last two excluded.
        size: Height and width of the image in pixels.

    Raises:
        ArgumentError: If shapes do not fit, or no box has pixels both inside and outside.
    """
    height, width = size
    if relevance.dim() != 3 or boxes.shape != (len(relevance), 4):
        raise ArgumentError(
            "relevance must be [B, rows, columns] and boxes [B, 4], got "
            f"{list(relevance.shape)} and {list(boxes.shape)}"
        )
    rows, columns = relevance.shape[1:]
    if height % rows or width % columns:
        raise ArgumentError(f"patches must divide the image, got {rows} x {columns} of {height} x {width} pixels")
    left, top, right, bottom = boxes.to(relevance.device).unbind(1)
    y = torch.arange(height, device=relevance.device).view(1, -1, 1)
    x = torch.arange(width, device=relevance.device).view(1, 1, -1)
    inside = (y >= top.view(-1, 1, 1)) & (y < bottom.view(-1, 1, 1)) & (x >= left.view(-1, 1, 1))
    inside = inside & (x < right.view(-1, 1, 1))
    pixels = relevance.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)
    scores, target = pixels.flatten(1).T, inside.flatten(1).T.double()  # an image is a task of both metrics
    return BoxScores(float(roc_auc(scores, target)), float(average_precision(scores, target)))
