"""Numba, for CPU: rows in parallel for the sum, edges for its adjoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, from_numpy

from graphattn_kernels._numba import compiled
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse_numba import array, by_ranges, edge_of, edges, empty
from graphattn_kernels.spmm.impl.numba import edge_sum
from graphattn_kernels.structure import View

__all__ = ["segment_sum", "spread"]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def segment_sum(view: View, rows: Tensor) -> Tensor:
    """Sum of ``rows`` over each owner; see the API."""
    flat = array(rows, accumulate_dtype(rows.dtype)).reshape(view.num_edges, math.prod(rows.shape[1:]))
    out = from_numpy(edge_sum(view, flat))
    return out.reshape(view.num_owners, *rows.shape[1:]).to(rows.dtype)


def spread(view: View, rows: Tensor) -> Tensor:
    """The owner's row on each edge; see the API."""
    width = math.prod(rows.shape[1:])
    bits = _BITS[rows.element_size()]  # nothing is computed, and NumPy has no bfloat16
    flat = array(rows.contiguous().view(bits), bits).reshape(view.num_owners, width)
    out = empty((view.num_edges, width), bits)
    by_ranges(_copy, view.num_edges, width, (*edges(view), flat, out))
    return from_numpy(out).view(rows.dtype).reshape(view.num_edges, *rows.shape[1:])


@compiled()
def _copy(first: int, last: int, owner: Any, index: Any, edge_id: Any, rows: Any, out: Any) -> None:
    for e in range(first, last):
        row, edge = owner[e], edge_of(edge_id, e)
        for c in range(rows.shape[1]):
            out[edge, c] = rows[row, c]
