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
    target, source = (_segment.in_callers_order(end, view) for end in (view.owner, view.index))
    out = a.new_empty((view.num_edges, *a.shape[1:]) if channels else (view.num_edges, a.shape[1]))
    for edges in _segment.slices(view.num_edges, a[:1].numel(), a.device):
        product = a.index_select(0, target[edges]).to(dtype).mul_(b.index_select(0, source[edges]))
        out[edges] = product if channels else product.sum(-1)
    return out
