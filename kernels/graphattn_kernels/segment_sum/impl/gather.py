"""Sorted gather and run-wise sums."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels.structure import View

__all__ = ["segment_sum", "spread"]


def segment_sum(view: View, rows: Tensor) -> Tensor:
    """Sum of ``rows`` over each owner; see the API."""
    dtype = _segment.accumulate_dtype(rows.dtype)
    out = rows.new_empty((view.num_owners, *rows.shape[1:]))
    for owners, edges, chunk in _segment.chunks(view, rows[:1].numel()):
        part = _segment.take(rows, chunk.edge_id, edges).to(dtype)
        out[owners] = _segment.segment_sum(part, chunk.ptr)
    return out


def spread(view: View, rows: Tensor) -> Tensor:
    """The owner's row on each edge; see the API."""
    return rows.index_select(0, _segment.in_callers_order(view.owner, view))
