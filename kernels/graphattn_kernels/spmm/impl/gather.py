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
    for owners, edges, chunk in _segment.chunks(view, values[:1].numel()):
        weight = weights[edges] if chunk.edge_id is None else weights.index_select(0, chunk.edge_id)
        weight = weight.to(dtype) if weight.dim() == 3 else weight.to(dtype).unsqueeze(-1)
        rows = values.index_select(0, chunk.index) * weight
        out[owners] = _segment.segment_sum(rows, chunk.ptr, chunk.owner)
    return out
