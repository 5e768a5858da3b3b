"""Gather, weigh and sum in chunks of targets."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels.structure import View

__all__ = ["spmm"]


def spmm(view: View, weights: Tensor, values: Tensor) -> Tensor:
    """See the API; ``view`` is sorted by the receiving end."""
    dtype = _segment.accumulate_dtype(values.dtype)
    out = values.new_empty((view.num_owners, *values.shape[1:]))
    rows = values.to(dtype).contiguous()
    for owners, edges, chunk in _segment.chunks(view, values[:1].numel()):
        weight = _segment.take(weights, chunk.edge_id, edges).to(dtype)
        out[owners] = _segment.weighted_sum(weight, rows, chunk)
    return out
