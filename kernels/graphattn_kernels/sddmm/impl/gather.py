"""Gather both ends in chunks of edges and multiply."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels.structure import Structure

__all__ = ["sddmm"]


def sddmm(structure: Structure, a: Tensor, b: Tensor, channels: bool) -> Tensor:
    """See the API."""
    view = structure.by_target
    dtype = _segment.accumulate_dtype(a.dtype)
    out = a.new_empty((view.num_edges, *a.shape[1:]) if channels else (view.num_edges, a.shape[1]))
    for _, edges, chunk in _segment.chunks(view, a[:1].numel()):
        product = a.index_select(0, view.owner[edges]).to(dtype) * b.index_select(0, chunk.index)
        part = (product if channels else product.sum(-1)).to(out.dtype)
        if chunk.edge_id is None:
            out[edges] = part
        else:
            out.index_copy_(0, chunk.edge_id.long(), part)
    return out
