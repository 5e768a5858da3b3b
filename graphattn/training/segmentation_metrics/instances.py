"""Average precision of instances that are given as label maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from graphattn.errors import ArgumentError, ArgumentTypeError

__all__ = ["InstanceAP"]

_COCO = tuple(0.5 + 0.05 * i for i in range(10))


class InstanceAP(Metric):
    """Average precision of label maps at thresholds of the intersection over union (mask AP, mAP^r).

    A found instance is right if its IoU with a true one exceeds the threshold; from 0.5 on, no two found ones can be
    right about the same, so nothing has to be assigned. Over all images, instances are ranked by their score, equal
    scores together; AP is the area below the precision envelope, as in VOC 2010 and later.

    :meth:`compute` gives ``ap`` (mean of the thresholds 0.5, 0.55, ..., 0.95), and for each threshold, say 0.7,
    ``ap70`` and ``threat70``: right ones over (found + true - right), which needs no scores (Data Science Bowl 2018,
    but there averaged over images).

    Args:
        thresholds: At least 0.5 and below 1.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    ious: list[Tensor]
    truths: Tensor

    def __init__(self, thresholds: tuple[float, ...] = (0.5, 0.7)) -> None:
        super().__init__()
        if not thresholds or any(not 0.5 <= t < 1.0 for t in thresholds):
            raise ArgumentError(f"thresholds must be at least 0.5 and below 1, got {thresholds}")
        self.thresholds = tuple(thresholds)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("ious", [], dist_reduce_fx="cat")
        self.add_state("truths", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, labels: Tensor, ids: Tensor, saliency: Tensor | None = None) -> None:
        """Add a batch; waits for the device, to learn how many instances there are.

        Args:
            labels: Integer ``[B, H, W]``: found instances, any numbers of 32 bits, 0 is background.
            ids: The same for true instances.
            saliency: ``[B, H, W]``: an instance's score is its mean; without it, all scores are equal.

        Raises:
            ArgumentError: If shapes do not fit.
            ArgumentTypeError: If maps are not integer.
        """
        for name, x in {"labels": labels, "ids": ids}.items():
            if x.is_floating_point() or x.dtype == torch.bool:
                raise ArgumentTypeError(f"{name} must be an integer tensor, got {x.dtype}")
        if labels.dim() != 3 or labels.shape != ids.shape:
            raise ArgumentError(
                f"labels and ids must both be [B, H, W], got {list(labels.shape)} and {list(ids.shape)}"
            )
        if saliency is not None and saliency.shape != labels.shape:
            raise ArgumentError(f"saliency must be {list(labels.shape)} as labels, got {list(saliency.shape)}")
        if not labels.numel():
            return
        image = torch.arange(len(labels), device=labels.device)[:, None, None].expand_as(labels)
        found, found_is = _numbered(image, labels)
        truth, truth_is = _numbered(image, ids)
        # Each pair of a found and a true one that meet, with the number of common pixels.
        pairs, common = torch.unique(found * len(truth_is) + truth, return_counts=True)
        mine, theirs = pairs // len(truth_is), pairs % len(truth_is)
        size_f = common.new_zeros(len(found_is)).scatter_add_(0, mine, common)
        size_t = common.new_zeros(len(truth_is)).scatter_add_(0, theirs, common)
        iou = (common / (size_f[mine] + size_t[theirs] - common)).where(truth_is[theirs], 0.0)
        best = iou.new_zeros(len(found_is)).scatter_reduce_(0, mine, iou, "amax")
        score = torch.ones_like(best)
        if saliency is not None:
            # Whole numbers add up to the same sum in any order.
            fixed = (saliency.detach().double() * 2.0**32).round().long().flatten()
            score = (torch.zeros_like(size_f).scatter_add_(0, found, fixed) / (size_f * 2.0**32)).float()
        self.ious.append(best[found_is])
        self.scores.append(score[found_is])
        self.truths += truth_is.sum()

    def compute(self) -> dict[str, Tensor]:
        """The figures over all images since the last reset; NaN without a true instance."""
        empty = torch.zeros(0, device=self.truths.device)
        ious, scores = (dim_zero_cat(x) if len(x) else empty for x in (self.ious, self.scores))
        results = {"ap": torch.stack([self._ap(scores, ious > t) for t in _COCO]).mean()}
        for t in self.thresholds:
            right = ious > t
            results[f"ap{round(100 * t)}"] = self._ap(scores, right)
            hits = right.sum()
            results[f"threat{round(100 * t)}"] = hits / (len(right) + self.truths - hits)
        return results

    def _ap(self, scores: Tensor, right: Tensor) -> Tensor:
        if not len(scores):
            return 0.0 / self.truths
        scores, order = scores.sort(descending=True)
        hits = right[order].cumsum(0)
        precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
        last = torch.ones_like(right)
        last[:-1] = scores[1:] != scores[:-1]  # equal scores are one threshold
        precision, hits = precision[last], hits[last]
        envelope = precision.flip(0).cummax(0).values.flip(0)
        gained = hits.diff(prepend=hits.new_zeros(1))
        return (gained * envelope).sum() / self.truths


def _numbered(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels numbered on over the images, ``[pixels]``, and which numbers are not background."""
    key = image * 2**32 + labels.long() % 2**32
    names, number = torch.unique(key.flatten(), return_inverse=True)
    return number, names % 2**32 != 0
