"""Run-wise maximum and sum."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels.segment_sum.impl.gather import segment_sum, spread
from graphattn_kernels.structure import View

__all__ = ["backward", "normalize_runs", "segment_softmax"]


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
    sorted_scores = _segment.take(scores, view.edge_id, everything).to(dtype).contiguous()
    weights, lse = normalize_runs(sorted_scores, view)
    return _segment.in_callers_order(weights.to(scores.dtype), view), lse


def backward(view: View, weights: Tensor, grad: Tensor, grad_lse: Tensor | None) -> Tensor:
    """``weights * (grad - the row's sum of weights * grad + grad_lse)``."""
    dtype = _segment.accumulate_dtype(weights.dtype)
    wide, slope = weights.to(dtype).contiguous(), grad.to(dtype)
    shift = segment_sum(view, wide * slope)
    if grad_lse is not None:
        shift = shift - grad_lse
    return (wide * (slope - spread(view, shift))).to(weights.dtype)
