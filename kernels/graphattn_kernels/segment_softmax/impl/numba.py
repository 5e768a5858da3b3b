"""Numba, for CPU: rows in parallel; hubs are cut into parts, each normalised by itself and then scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from graphattn_kernels._numba import Array, Parts, compiled, exp, prefetch, run
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse_numba import AHEAD, array, by_ranges, edge_of, edges, empty
from graphattn_kernels.spmm.impl.numba import edge_sum
from graphattn_kernels.structure import View

__all__ = ["backward", "segment_softmax"]


def segment_softmax(view: View, scores: Tensor) -> tuple[Tensor, Tensor]:
    """See the API."""
    dtype = accumulate_dtype(scores.dtype)
    given = array(scores, dtype)
    weights = empty(given.shape, dtype)
    top, total = (empty((view.num_owners, given.shape[1]), dtype) for _ in range(2))
    parts = run(_softmax, view, 4 * given.shape[1], (given, weights), (top, total))
    if parts is not None:
        share = _merge(parts, top, total)
        _, _, edge_id = edges(view)
        by_ranges(_scale, share.shape[0], 1024 * given.shape[1], (parts.begin, parts.end, edge_id, share, weights))
    lse = from_numpy(total).log_().add_(from_numpy(top))
    return from_numpy(weights).to(scores.dtype), lse


def _merge(parts: Parts, top: Array, total: Array) -> Array:
    """Maximum and sum of each hub from those of its parts; returns each part's share of the mass."""
    part_top, part_total = parts.results
    hub_top = np.maximum.reduceat(part_top, parts.starts, axis=0)
    shift = np.where(hub_top == -np.inf, 0, hub_top).astype(top.dtype)
    mass = part_total * np.exp(part_top - shift[parts.hub_of_part])
    hub_total = np.add.reduceat(mass, parts.starts, axis=0)
    top[parts.hubs], total[parts.hubs] = hub_top, hub_total
    return mass / np.where(hub_total == 0, 1, hub_total)[parts.hub_of_part]


def backward(view: View, weights: Tensor, grad: Tensor, grad_lse: Tensor | None) -> Tensor:
    """``weights * (grad - the row's sum of weights * grad + grad_lse)``."""
    dtype = accumulate_dtype(weights.dtype)
    factors, slopes = array(weights, dtype), array(grad, dtype)
    shift = edge_sum(view, factors, slopes)
    if grad_lse is not None:
        shift -= array(grad_lse, dtype)
    out = empty(factors.shape, dtype)
    by_ranges(_backward, view.num_edges, factors.shape[1], (*edges(view), factors, slopes, shift, out))
    return from_numpy(out).to(weights.dtype)


@compiled()
def _softmax(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    scores: Any, weights: Any, top: Any, total: Any,
) -> None:  # fmt: skip
    """Weights, maximum and sum of each run by itself."""
    heads = scores.shape[1]
    zero = scores.dtype.type(0)
    infinity = scores.dtype.type(np.inf)
    block = np.empty(longest * heads, scores.dtype)  # the run's scores, in one piece: one long loop of exponentials
    factor = np.empty(heads, scores.dtype)
    for i in range(first, last):
        n = end[i] - begin[i]
        if n > longest:
            continue
        top[i] = -infinity
        total[i] = zero
        for j in range(n):
            if begin[i] + j + AHEAD < index.shape[0]:
                ahead = edge_of(edge_id, begin[i] + j + AHEAD)
                prefetch(scores, ahead)
                prefetch(weights, ahead)
            edge = edge_of(edge_id, begin[i] + j)
            for h in range(heads):
                block[j * heads + h] = scores[edge, h]
                top[i, h] = max(top[i, h], scores[edge, h])
        for h in range(heads):
            # Any finite number does where all scores are -inf: their weights are 0.
            factor[h] = top[i, h] if top[i, h] > -infinity else zero
        for j in range(n):
            for h in range(heads):
                block[j * heads + h] -= factor[h]
        for c in range(n * heads):
            block[c] = exp(block[c])
        for j in range(n):
            for h in range(heads):
                total[i, h] += block[j * heads + h]
        for h in range(heads):
            factor[h] = zero if total[i, h] == zero else 1 / total[i, h]
        for j in range(n):
            edge = edge_of(edge_id, begin[i] + j)
            for h in range(heads):
                weights[edge, h] = block[j * heads + h] * factor[h]


@compiled()
def _scale(first: int, last: int, begin: Any, end: Any, edge_id: Any, share: Any, weights: Any) -> None:
    for i in range(first, last):
        for e in range(begin[i], end[i]):
            edge = edge_of(edge_id, e)
            for h in range(weights.shape[1]):
                weights[edge, h] *= share[i, h]


@compiled()
def _backward(
    first: int, last: int, owner: Any, index: Any, edge_id: Any, weights: Any, grad: Any, shift: Any, out: Any
) -> None:
    for e in range(first, last):
        if e + AHEAD < index.shape[0]:
            ahead = edge_of(edge_id, e + AHEAD)
            prefetch(weights, ahead)
            prefetch(grad, ahead)
        row, edge = np.uintp(owner[e]), edge_of(edge_id, e)
        for h in range(weights.shape[1]):
            out[edge, h] = weights[edge, h] * (grad[edge, h] - shift[row, h])
