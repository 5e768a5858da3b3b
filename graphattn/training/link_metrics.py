"""Ranking metrics of link prediction as ``torchmetrics`` modules, by OGB's definitions, in per cent."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["HitsAt", "MeanReciprocalRank"]


class HitsAt(Metric):
    """Share of existing edges that score above the ``k``-th best of all negative ones, in per cent.

    Args:
        k: Rank. With fewer negatives the figure is 100, as in OGB's evaluator.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores ``[B]`` and labels ``[B]``, 1 for edges that exist."""
        self.scores.append(scores.detach().float())
        self.labels.append(labels > 0.5)

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset."""
        from graphattn_datasets.ogb.evaluate import hits_at

        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        return 100 * hits_at(self.k, scores[labels], scores[~labels]).float()


class MeanReciprocalRank(Metric):
    """Mean of one over the rank of each edge among negatives of its own, ties in the middle, in per cent."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores ``[B, 1 + K]``, the edge first in each row; the labels say nothing more."""
        from graphattn_datasets.ogb.evaluate import reciprocal_ranks

        ranks = reciprocal_ranks(scores[:, 0].detach(), scores[:, 1:].detach())
        self.total += ranks.sum()
        self.count += ranks.numel()

    def compute(self) -> Tensor:
        """The figure over all batches since the last reset."""
        return 100 * self.total / self.count.clamp(min=1)
