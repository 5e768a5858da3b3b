"""Run-wise maximum and sum."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels.structure import View

__all__ = ["normalize_runs", "segment_softmax"]


def normalize_runs(scores: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Softmax over each run of sorted ``scores [E, H]``: weights and log-sum-exp ``[N, H]``."""
    top = _segment.segment_max(scores, view.ptr)
    # A run that is empty, or all of whose scores are -inf, has the maximum -inf: its weights are 0, not inf - inf.
    safe = top.masked_fill(top == float("-inf"), 0.0)
    weights = (scores - safe.index_select(0, view.owner)).exp_()
    total = _segment.segment_sum(weights, view.ptr)
    weights = weights.div_(total.masked_fill(total == 0, 1.0).index_select(0, view.owner))
    return weights, safe + total.log()


def segment_softmax(view: View, scores: Tensor) -> tuple[Tensor, Tensor]:
    """See the API."""
    dtype = _segment.accumulate_dtype(scores.dtype)
    everything = slice(0, view.num_edges)
    weights, lse = normalize_runs(_segment.take(scores, view.edge_id, everything).to(dtype), view)
    return _segment.in_callers_order(weights.to(scores.dtype), view), lse
