"""The compiled passes: each takes a range of runs of edges and writes results of those only, so threads never meet."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphattn_kernels._lanes import LANES, load, spread, store, total, where_larger
from graphattn_kernels._lanes_functions import exp, log
from graphattn_kernels._numba import compiled, inlined
from graphattn_kernels.csr_attention.impl.numba.blocks import (
    BLOCK,
    add_dots,
    ask_for,
    blocks_of,
    carry,
    clear,
    dots,
    drop,
    filled,
    row_at,
    scores,
    take,
)
from graphattn_kernels.csr_attention.impl.numba.sums import add_gradients, add_rows, write_gradients

__all__ = ["backward_sources", "backward_targets", "forward", "prepare"]


@inlined
def _clip(x: Any, bound: Any) -> Any:
    """NaN stays."""
    x = where_larger(x, bound, bound, x)
    return where_larger(-bound, x, -bound, x)


@inlined
def _write(shape: Any, run: int, sums: Any, factor: Any, result: Any) -> None:
    """Write what was summed up for a run, each head times its factor."""
    heads, width, _ = shape
    blocks = blocks_of(shape)
    for h in range(heads):
        for i in range(blocks):
            x = load(sums, (h * blocks + i) * LANES, LANES) * factor[h]
            store(result, (run * heads + h) * width + i * LANES, x, width - i * LANES)


@compiled()
def forward(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    shape: Any, v_shape: Any, q: Any, k: Any, v: Any, edge_rows: Any, terms: Any, bound: Any, dropout: Any,
    product: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """Output and log-sum-exp of the runs ``first:last`` that are not longer than ``longest``; see :func:`_numba.run`.

    Args:
        shape: Of q and k; this and ``terms``: see ``blocks``.
        v_shape: Of v.
        edge_rows: ``[E, H, D]``, or empty; where there are any, ``edge_id`` is not empty.
        bound: The clamp, or infinity.
        dropout: The two numbers of the seed, each below 2^32; a weight is dropped if its random bits are below the
            third; the others grow by the fourth, ``1 / (1 - p)``.
        product: ``[E, H, D]``, written; may be empty.
        out: ``[runs, H, D_v]``, written.
        lse: ``[runs, H]``, written.
    """
    heads = shape[0]
    lanes, size = filled(heads), heads * blocks_of(v_shape) * LANES
    number = lse.dtype.type
    zero, half, infinity, lowest = number(0), number(0.5), number(np.inf), number(np.finfo(lse.dtype).min)
    scale, (threshold, grow) = terms[4], dropout[2:]
    score, parts = np.zeros(BLOCK * lanes, lse.dtype), np.zeros(lanes * LANES, lse.dtype)
    top, mass, factor = np.empty(lanes, lse.dtype), np.empty(lanes, lse.dtype), np.empty(lanes, lse.dtype)
    sums = np.empty(size, lse.dtype)
    flat_out, flat_lse = out.reshape(-1), lse.reshape(-1)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.intp(rows[i]) if rows.size else i
        clear(sums)
        clear(mass)
        for h in range(0, heads, LANES):
            store(top, h, spread(-infinity), LANES)
        for start in range(begin[i], end[i], BLOCK):
            n = min(end[i] - start, BLOCK)
            block = start, n, row, index, edge_id
            scores(shape, block, q, k, terms, product, parts, score)
            if edge_rows.size:
                add_dots(shape, block, edge_rows, q, True, scale, parts, score)
            for h in range(0, heads, LANES):
                before = load(top, h, LANES)
                peak = before
                for j in range(h, h + n * lanes, lanes):
                    x = load(score, j, LANES)
                    if bound < infinity:
                        x = _clip(x, bound)
                        store(score, j, x, LANES)
                    peak = where_larger(x, peak, x, peak)
                store(top, h, peak, LANES)
                # Any finite number does where all scores are -inf: their weights are 0.
                shift = where_larger(lowest, peak, lowest, peak)
                part = spread(zero)
                for j in range(h, h + n * lanes, lanes):
                    x = exp(load(score, j, LANES) - shift)
                    store(score, j, x, LANES)
                    part = part + x
                x = exp(before - shift)
                store(mass, h, load(mass, h, LANES) * x + part, LANES)
                store(factor, h, x, LANES)
            if start > begin[i]:
                for d in range(0, size, LANES):
                    store(sums, d, load(sums, d, LANES) * factor[d * heads // size], LANES)
            if threshold:
                drop(heads, block, dropout, score)
            add_rows(v_shape, block, score, v, True, sums)
            if edge_rows.size:
                add_rows(shape, (start, n, row, edge_id, edge_id), score, edge_rows, False, sums)
        for h in range(0, heads, LANES):
            # At least 1, that of the largest score; 0 where there is none above -inf.
            x = load(mass, h, LANES)
            y = log(x) + load(top, h, LANES)
            store(flat_lse, i * heads + h, where_larger(half, x, -infinity, y), heads - h)
            store(factor, h, where_larger(half, x, zero, grow / x), LANES)
        _write(v_shape, i, sums, factor, flat_out)


@compiled()
def prepare(first: int, last: int, v_shape: Any, out: Any, grad_out: Any, lse: Any, grad_lse: Any, stats: Any) -> None:
    """For each row and head the log-sum-exp (any finite number for -inf: its weights are 0) and delta.

    Args:
        grad_lse: ``[T, H]``, or empty.
        stats: ``[T, 2, H]``, written.
    """
    heads, width, _ = v_shape
    zero = stats.dtype.type(0)
    for i in range(first * heads, last * heads):
        x = spread(zero)
        for d in range(i * width, (i + 1) * width, LANES):
            count = (i + 1) * width - d
            x = x + load(out, d, count) * load(grad_out, d, count)
        delta = total(x) - grad_lse[i] if grad_lse.size else total(x)
        at = i // heads * heads + i
        stats[at] = zero if lse[i] == -np.inf else lse[i]
        stats[at + heads] = delta


@compiled()
def backward_sources(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    shape: Any, v_shape: Any, q: Any, k: Any, v: Any, edge_rows: Any, terms: Any, bound: Any, dropout: Any,
    stats: Any, grad_out: Any, grad_product: Any, carried: Any, grad_edge_rows: Any, grad_k: Any, grad_v: Any,
) -> None:  # fmt: skip
    """What the edges of a source say, from the weights that the log-sum-exp gives again.

    Args:
        stats: See :func:`prepare`.
        grad_product: ``[E, H, D]``, or empty.
        carried: ``[E, H]``, written: the gradient of the score.
        grad_edge_rows: ``[E, H, D]``, written; empty where ``edge_rows`` is.
        grad_k: ``[runs, H, D]``, written.
        grad_v: ``[runs, H, D_v]``, written.
    """
    heads = shape[0]
    lanes = filled(heads)
    number = stats.dtype.type
    zero, one, infinity = number(0), number(1), number(np.inf)
    _, _, gate, _, scale, additive, _ = terms
    threshold, grow = dropout[2:]
    no_product, no_rows, nothing = grad_product[:0], q[:0], stats[:0]
    weight, slope = np.zeros(BLOCK * lanes, stats.dtype), np.zeros(BLOCK * lanes, stats.dtype)
    factor, parts = np.full(BLOCK * lanes, grow, stats.dtype), np.zeros(lanes * LANES, stats.dtype)
    k_sums = np.empty(heads * blocks_of(shape) * LANES, stats.dtype)
    v_sums = np.empty(heads * blocks_of(v_shape) * LANES, stats.dtype)
    ones = np.full(heads, one, stats.dtype)
    flat_k, flat_v = grad_k.reshape(-1), grad_v.reshape(-1)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.intp(rows[i]) if rows.size else i
        clear(k_sums)
        clear(v_sums)
        for start in range(begin[i], end[i], BLOCK):
            n = min(end[i] - start, BLOCK)
            block = start, n, row, index, edge_id
            for j in range(n):
                ask_for(stats, index, start + j, 2 * heads)
                if edge_id.size:
                    ask_for(carried, edge_id, start + j, heads)
            scores(shape, block, k, q, terms, no_product, parts, weight)
            dots(v_shape, block, v, grad_out, one, parts, slope)
            if edge_rows.size:
                add_dots(shape, block, edge_rows, q, False, scale, parts, weight)
                add_dots(shape, block, edge_rows, grad_out, False, one, parts, slope)
            if threshold:
                for j in range(0, n * lanes, LANES):
                    store(factor, j, spread(grow), LANES)
                drop(heads, block, dropout, factor)
            for j in range(n):
                target = row_at(index, start + j, 2 * heads)
                for h in range(0, heads, LANES):
                    at = j * lanes + h
                    raw, m = load(weight, at, LANES), load(factor, at, LANES)
                    x = _clip(raw, bound) if bound < infinity else raw
                    p = exp(x - load(stats, target + h, heads - h))
                    ds = p * (m * load(slope, at, LANES) - load(stats, target + heads + h, heads - h))
                    if bound < infinity:
                        ds = where_larger(raw, bound, zero, where_larger(-bound, raw, zero, ds))
                    store(weight, at, p * m, LANES)
                    store(slope, at, ds, LANES)
            carry(heads, block, slope, carried)
            for j in range(0, n * lanes, LANES):
                store(slope, j, load(slope, j, LANES) * scale, LANES)
            add_rows(v_shape, block, weight, grad_out, False, v_sums)
            if edge_rows.size:
                write_gradients(shape, block, slope, q, weight, grad_out, grad_edge_rows)
            if additive or gate.size or grad_product.size:
                add_gradients(shape, block, k, q, terms, slope, grad_product, no_rows, False, k_sums, nothing)
            else:
                add_rows(shape, block, slope, q, False, k_sums)
        _write(shape, i, k_sums, ones, flat_k)
        _write(v_shape, i, v_sums, ones, flat_v)


@compiled()
def backward_targets(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    shape: Any, q: Any, k: Any, edge_rows: Any, terms: Any, grad_product: Any, carried: Any, grad_gate: Any,
    grad_q: Any, grad_att: Any,
) -> None:  # fmt: skip
    """What the edges of a target say, from what :func:`backward_sources` carried.

    Args:
        grad_product: ``[E, H, D]``, or empty.
        grad_gate: ``[E, H, D]``, written; may be empty.
        grad_q: ``[runs, H, D]``, written.
        grad_att: ``[runs, H, D]``, written: what the run adds to the gradient of att; may be empty.
    """
    heads, size = shape[0], shape[0] * blocks_of(shape) * LANES
    number = carried.dtype
    _, _, gate, _, scale, additive, _ = terms
    slope, ones = np.zeros(BLOCK * filled(heads), number), np.ones(heads, number)
    sums, att_sums = np.empty(size, number), np.empty(size if grad_att.size else 0, number)
    flat_q, flat_att = grad_q.reshape(-1), grad_att.reshape(-1)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.intp(rows[i]) if rows.size else i
        clear(sums)
        clear(att_sums)
        for start in range(begin[i], end[i], BLOCK):
            n = min(end[i] - start, BLOCK)
            block = start, n, row, index, edge_id
            take(heads, block, carried, scale, slope)
            if additive or gate.size or grad_product.size:
                add_gradients(shape, block, q, k, terms, slope, grad_product, grad_gate, True, sums, att_sums)
            else:
                add_rows(shape, block, slope, k, True, sums)
            if edge_rows.size:
                add_rows(shape, (start, n, row, edge_id, edge_id), slope, edge_rows, True, sums)
        _write(shape, i, sums, ones, flat_q)
        if grad_att.size:
            _write(shape, i, att_sums, ones, flat_att)
