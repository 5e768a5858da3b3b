"""Sorted gather and run-wise sums."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels.structure import View

__all__ = ["segment_sum", "spread"]


def segment_sum(view: View, rows: Tensor) -> Tensor:
    """Sum of ``rows`` over each owner; see the API."""
    dtype = _segment.accumulate_dtype(rows.dtype)
    out = rows.new_empty((view.num_owners, *rows.shape[1:]))
    for owners, edges, chunk in _segment.chunks(view, rows[:1].numel()):
        part = rows[edges] if chunk.edge_id is None else rows.index_select(0, chunk.edge_id)
        out[owners] = _segment.segment_sum(part.to(dtype), chunk.ptr, chunk.owner)
    return out


def spread(view: View, rows: Tensor) -> Tensor:
    """The owner's row on each edge; see the API."""
    taken = rows.index_select(0, view.owner)
    if view.edge_id is None:
        return taken
    return torch.empty_like(taken).index_copy_(0, view.edge_id.long(), taken)
