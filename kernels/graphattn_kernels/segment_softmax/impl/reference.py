"""Dense masked softmax of every target against every edge, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.segment_sum.impl.reference import incidence, spread
from graphattn_kernels.structure import Structure

__all__ = ["segment_softmax"]


def segment_softmax(structure: Structure, scores: Tensor) -> tuple[Tensor, Tensor]:
    """See the API."""
    wide = scores.to(accumulate_dtype(scores.dtype))
    mine = wide.masked_fill(~incidence(structure.by_target)[..., None], float("-inf"))
    # A row without an edge, or all of whose scores are -inf: any finite numbers keep it out of the gradient.
    empty = (mine == float("-inf")).all(1)
    lse = mine.masked_fill(empty.unsqueeze(1), 0.0).logsumexp(1)
    weights = (wide - spread(structure, lse)).exp()
    return weights.to(scores.dtype), lse.masked_fill(empty, float("-inf"))
