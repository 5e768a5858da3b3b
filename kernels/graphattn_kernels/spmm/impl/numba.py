"""Numba, for CPU: rows in parallel, each summed in order; hubs are cut into parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from graphattn_kernels._numba import compiled, prefetch, run
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse_numba import AHEAD, array, edge_of, empty
from graphattn_kernels.structure import View

__all__ = ["edge_sum", "spmm"]


def spmm(view: View, weights: Tensor, values: Tensor) -> Tensor:
    """See the API; ``view`` is sorted by the receiving end."""
    dtype = accumulate_dtype(values.dtype)
    rows, factors = array(values, dtype), array(weights, dtype)
    out = empty((view.num_owners, *rows.shape[1:]), dtype)
    width = rows.shape[1] * rows.shape[2]
    result = out
    kernel = _weighted
    if factors.ndim == 3:  # heads do not matter: one long row of channels
        kernel, rows, factors = (
            _weighted_channels,
            rows.reshape(rows.shape[0], width),
            factors.reshape(factors.shape[0], width),
        )
        result = out.reshape(out.shape[0], width)
    parts = run(kernel, view, width, (factors, rows), (result,))
    if parts is not None:
        parts.add((result,))
    return from_numpy(out).to(values.dtype)


def edge_sum(view: View, rows: np.ndarray[Any, Any], factors: np.ndarray[Any, Any] | None = None) -> Any:
    """Sum of the edges' own ``rows [E, W]``, times ``factors [E, W]`` where given, over each owner: ``[N, W]``."""
    out = empty((view.num_owners, rows.shape[1]), from_numpy(rows).dtype)
    inputs = (rows,) if factors is None else (rows, factors)
    parts = run(_plain if factors is None else _products, view, rows.shape[1], inputs, (out,))
    if parts is not None:
        parts.add((out,))
    return out


@compiled()
def _weighted(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    weights: Any, values: Any, out: Any,
) -> None:  # fmt: skip
    """``weights [E, H]``, ``values [M, H, D]``."""
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        out[i] = 0
        for e in range(begin[i], end[i]):
            if e + AHEAD < index.shape[0]:
                prefetch(values, index[e + AHEAD])
                prefetch(weights, edge_of(edge_id, e + AHEAD))
            s, edge = np.uintp(index[e]), edge_of(edge_id, e)
            for h in range(values.shape[1]):
                weight = weights[edge, h]
                for d in range(values.shape[2]):
                    out[i, h, d] += weight * values[s, h, d]


@compiled()
def _weighted_channels(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    weights: Any, values: Any, out: Any,
) -> None:  # fmt: skip
    """``weights [E, W]``, ``values [M, W]``."""
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        out[i] = 0
        for e in range(begin[i], end[i]):
            if e + AHEAD < index.shape[0]:
                prefetch(values, index[e + AHEAD])
                prefetch(weights, edge_of(edge_id, e + AHEAD))
            s, edge = np.uintp(index[e]), edge_of(edge_id, e)
            for c in range(values.shape[1]):
                out[i, c] += weights[edge, c] * values[s, c]


@compiled()
def _plain(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    values: Any, out: Any,
) -> None:  # fmt: skip
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        out[i] = 0
        for e in range(begin[i], end[i]):
            if e + AHEAD < index.shape[0]:
                prefetch(values, edge_of(edge_id, e + AHEAD))
            edge = edge_of(edge_id, e)
            for c in range(values.shape[1]):
                out[i, c] += values[edge, c]


@compiled()
def _products(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    values: Any, factors: Any, out: Any,
) -> None:  # fmt: skip
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        out[i] = 0
        for e in range(begin[i], end[i]):
            if e + AHEAD < index.shape[0]:
                prefetch(values, edge_of(edge_id, e + AHEAD))
                prefetch(factors, edge_of(edge_id, e + AHEAD))
            edge = edge_of(edge_id, e)
            for c in range(values.shape[1]):
                out[i, c] += values[edge, c] * factors[edge, c]
