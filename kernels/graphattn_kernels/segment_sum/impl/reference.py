"""The definition, dense and differentiable any number of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.structure import Structure, View

__all__ = ["incidence", "owner_of_edge", "segment_sum", "spread"]


def owner_of_edge(view: View) -> Tensor:
    """int64 ``[E]``: the owner of each edge in the caller's order."""
    owner = view.owner.long()
    return owner if view.edge_id is None else torch.empty_like(owner).index_copy_(0, view.edge_id.long(), owner)


def incidence(view: View) -> Tensor:
    """Boolean ``[N, E]``: does the owner own the edge (caller's order)?"""
    owners = torch.arange(view.num_owners, device=view.ptr.device)
    return owners[:, None] == owner_of_edge(view)


def segment_sum(structure: Structure, rows: Tensor) -> Tensor:
    """Incidence matrix times rows."""
    flat = rows.reshape(rows.shape[0], math.prod(rows.shape[1:])).to(accumulate_dtype(rows.dtype))
    with torch.autocast(rows.device.type, enabled=False):  # a matrix product would leave its dtype
        out = incidence(structure.by_target).to(flat.dtype) @ flat
    return out.reshape(structure.num_targets, *rows.shape[1:]).to(rows.dtype)


def spread(structure: Structure, rows: Tensor) -> Tensor:
    """Plain indexing."""
    return rows[owner_of_edge(structure.by_target)]
