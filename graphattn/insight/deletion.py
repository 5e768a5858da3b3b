"""Does a model lose its answer when the patches that count are taken away?"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError

__all__ = ["DeletionCurve", "deletion_curve"]


class DeletionCurve(NamedTuple):
    """Score against the share of patches that are gone.

    Args:
        share: float64 ``[S + 1]``, from 0 to 1.
        score: float64 ``[S + 1]``, 0 to 1, the mean over images.
        order: ``"morf"`` or ``"lerf"``.
    """

    share: Tensor
    score: Tensor
    order: str

    @property
    def area_under(self) -> float:
        """By the trapezoidal rule."""
        return float(torch.trapezoid(self.score, self.share))

    @property
    def area_over(self) -> float:
        """One less the area under the curve: high for a good relevance in the order ``"morf"``, low in ``"lerf"``."""
        return 1.0 - self.area_under


@torch.no_grad()
def deletion_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    relevance: Tensor,
    *,
    order: Literal["morf", "lerf"] = "morf",
    steps: int = 20,
    fill: float | Tensor = 0.0,
    measure: Literal["accuracy", "probability"] = "accuracy",
    batch_size: int = 256,
) -> DeletionCurve:
    """Delete patches most relevant first (MoRF) or least relevant first (LeRF) and score the model after each step.

    Samek et al., "Evaluating the visualization of what a deep neural network has learned", 2017. Roffo et al. (arXiv
    2603.00175) report the area over the MoRF curve; their fill value, number of steps and whether accuracy or
    probability is scored are not stated in what could be read, so figures do not compare with theirs.

    Args:
        model: Class scores ``[B, C]`` of images; its mode (evaluation, say) is left as it is.
        images: ``[B, channels, height, width]``.
        labels: int64 ``[B]``.
        relevance: ``[B, rows, columns]`` of patches, which divide the image. Of equal ones the first goes first.
        order: ``"morf"`` or ``"lerf"``.
        steps: Steps from the whole image to none.
        fill: What deleted pixels become: a number, or one for each channel ``[channels]``.
        measure: ``"accuracy"``, or ``"probability"`` of the label.
        batch_size: Images at a time.

    Raises:
        ArgumentError: If arguments do not fit.
    """
    _check(images, labels, relevance, order, steps, measure)
    count, rows, columns = relevance.shape
    number = rows * columns
    ranking = relevance.flatten(1).argsort(dim=1, descending=order == "morf", stable=True)
    rank = ranking.argsort(dim=1).view(count, 1, rows, columns)  # of each patch: when it goes
    zoom = (images.shape[2] // rows, images.shape[3] // columns)
    rank = rank.repeat_interleave(zoom[0], 2).repeat_interleave(zoom[1], 3).to(images.device)
    value = torch.as_tensor(fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    shares, scores = [], []
    for step in range(steps + 1):
        gone = round(step * number / steps)
        total = 0.0
        for first in range(0, count, batch_size):
            part = slice(first, first + batch_size)
            logits = model(torch.where(rank[part] < gone, value, images[part])).float()
            answer = labels[part].to(logits.device)
            if measure == "accuracy":
                total += float((logits.argmax(1) == answer).sum())
            else:
                total += float(logits.softmax(1).gather(1, answer.unsqueeze(1)).double().sum())
        shares.append(gone / number)
        scores.append(total / count)
    return DeletionCurve(torch.tensor(shares, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64), order)


def _check(images: Tensor, labels: Tensor, relevance: Tensor, order: str, steps: int, measure: str) -> None:
    if order not in ("morf", "lerf"):
        raise ArgumentError(f"order must be 'morf' or 'lerf', got {order!r}")
    if measure not in ("accuracy", "probability"):
        raise ArgumentError(f"measure must be 'accuracy' or 'probability', got {measure!r}")
    if steps < 1:
        raise ArgumentError(f"steps must be at least 1, got {steps}")
    fits = relevance.dim() == 3 and images.dim() == 4 and len(images) == len(labels) == len(relevance) > 0
    if not fits or images.shape[2] % relevance.shape[1] or images.shape[3] % relevance.shape[2]:
        raise ArgumentError(
            "images must be [B, channels, height, width], labels [B] and relevance [B, rows, columns] of patches that "
            f"divide the image, got {list(images.shape)}, {list(labels.shape)} and {list(relevance.shape)}"
        )
