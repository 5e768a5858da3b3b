"""Triton, for CUDA: the kernels of spmm without weights, and of sddmm without a second factor."""

from __future__ import annotations

import math

from torch import Tensor

from graphattn_kernels.sddmm.impl.triton import edge_products
from graphattn_kernels.spmm.impl.triton import row_sum
from graphattn_kernels.structure import View

__all__ = ["segment_sum", "spread"]


def segment_sum(view: View, rows: Tensor) -> Tensor:
    """Sum of ``rows`` over each owner; see the API."""
    flat = rows.reshape(rows.shape[0], 1, math.prod(rows.shape[1:]))
    return row_sum(view, flat, None).view(view.num_owners, *rows.shape[1:])


def spread(view: View, rows: Tensor) -> Tensor:
    """The owner's row on each edge; see the API."""
    out = rows.new_empty((view.num_edges, *rows.shape[1:]))
    width = math.prod(rows.shape[1:])
    edge_products(view, rows.reshape(rows.shape[0], 1, width), None, out.view(view.num_edges, 1, width))
    return out
