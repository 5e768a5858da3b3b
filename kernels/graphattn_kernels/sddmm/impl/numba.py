"""Numba, for CPU: edges in parallel."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from graphattn_kernels._numba import compiled, prefetch
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse_numba import AHEAD, array, by_ranges, edge_of, edges, empty
from graphattn_kernels.structure import Structure

__all__ = ["sddmm"]


def sddmm(structure: Structure, a: Tensor, b: Tensor, channels: bool) -> Tensor:
    """See the API."""
    view = structure.by_target
    dtype = accumulate_dtype(a.dtype)
    left, right = array(a, dtype), array(b, dtype)
    heads, depth = left.shape[1:]
    out = empty((view.num_edges, heads, depth) if channels else (view.num_edges, heads), dtype)
    arguments = (*edges(view), left, right, out)
    by_ranges(_products if channels else _dots, view.num_edges, heads * depth, arguments)
    return from_numpy(out).to(a.dtype)


@compiled()
def _dots(first: int, last: int, owner: Any, index: Any, edge_id: Any, a: Any, b: Any, out: Any) -> None:
    for e in range(first, last):
        if e + AHEAD < index.shape[0]:
            prefetch(b, index[e + AHEAD])
            prefetch(out, edge_of(edge_id, e + AHEAD))
        t, s, edge = np.uintp(owner[e]), np.uintp(index[e]), edge_of(edge_id, e)
        for h in range(a.shape[1]):
            total = a.dtype.type(0)
            for d in range(a.shape[2]):
                total += a[t, h, d] * b[s, h, d]
            out[edge, h] = total


@compiled()
def _products(first: int, last: int, owner: Any, index: Any, edge_id: Any, a: Any, b: Any, out: Any) -> None:
    for e in range(first, last):
        if e + AHEAD < index.shape[0]:
            prefetch(b, index[e + AHEAD])
            prefetch(out, edge_of(edge_id, e + AHEAD))
        t, s, edge = np.uintp(owner[e]), np.uintp(index[e]), edge_of(edge_id, e)
        for h in range(a.shape[1]):
            for d in range(a.shape[2]):
                out[edge, h, d] = a[t, h, d] * b[s, h, d]
