"""The compiled passes: each takes a range of runs of edges and writes results of those only, so threads never meet."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphattn_kernels._lanes import LANES, load, spread, store, total, where_larger
from graphattn_kernels._lanes_functions import exp, log
from graphattn_kernels._numba import compiled, inlined
from graphattn_kernels.csr_attention.impl.numba.blocks import (
    BLOCK,
    add_gradients,
    add_rows,
    blocks_of,
    carry,
    clear,
    dots,
    drop,
    filled,
    scores,
    take,
)

__all__ = ["backward_sources", "backward_targets", "forward"]


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
    shape: Any, v_shape: Any, q: Any, k: Any, v: Any, terms: Any, bound: Any, dropout: Any, product: Any,
    out: Any, lse: Any,
) -> None:  # fmt: skip
    """Output and log-sum-exp of the runs ``first:last`` that are not longer than ``longest``; see :func:`_numba.run`.

    Args:
        shape: Of q and k; this and ``terms``: see ``blocks``.
        v_shape: Of v.
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
    threshold, grow = dropout[2:]
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
        for h in range(0, heads, LANES):
            # At least 1, that of the largest score; 0 where there is none above -inf.
            x = load(mass, h, LANES)
            y = log(x) + load(top, h, LANES)
            store(flat_lse, i * heads + h, where_larger(half, x, -infinity, y), heads - h)
            store(factor, h, where_larger(half, x, zero, grow / x), LANES)
        _write(v_shape, i, sums, factor, flat_out)


@compiled()
def backward_targets(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    shape: Any, v_shape: Any, q: Any, k: Any, v: Any, terms: Any, bound: Any, dropout: Any,
    out: Any, lse: Any, grad_out: Any, grad_lse: Any, grad_product: Any,
    grad_bias: Any, grad_gate: Any, carried: Any, grad_q: Any, grad_att: Any,
) -> None:  # fmt: skip
    """What the edges of a target say, from the weights that the log-sum-exp gives again.

    Args:
        out: The output, ``[T, H, D_v]``, in the dtype of ``grad_out``.
        lse: The log-sum-exp, ``[T, H]``.
        grad_lse: ``[T, H]``, or empty.
        grad_product: ``[E, H, D]``, or empty.
        grad_bias: ``[E, H]``, written; may be empty.
        grad_gate: ``[E, H, D]``, written; may be empty.
        carried: ``[E, 2, H]``, written, for the pass over sources: the weight (0 if dropped, else grown), and the
            gradient of the score, times the scale.
        grad_q: ``[runs, H, D]``, written.
        grad_att: ``[runs, H, D]``, written: what the run adds to the gradient of att; may be empty.
    """
    heads, v_width, _ = v_shape
    lanes, size = filled(heads), heads * blocks_of(shape) * LANES
    number = lse.dtype.type
    zero, one, infinity = number(0), number(1), number(np.inf)
    _, _, gate, _, scale, additive, _ = terms
    threshold, grow = dropout[2:]
    no_product = grad_product[:0]
    weight, slope = np.zeros(BLOCK * lanes, lse.dtype), np.zeros(BLOCK * lanes, lse.dtype)
    factor, parts = np.full(BLOCK * lanes, grow, lse.dtype), np.zeros(lanes * LANES, lse.dtype)
    shift, delta, ones = np.zeros(lanes, lse.dtype), np.zeros(lanes, lse.dtype), np.full(heads, one, lse.dtype)
    sums, att_sums = np.empty(size, lse.dtype), np.empty(size if grad_att.size else 0, lse.dtype)
    flat_q, flat_att = grad_q.reshape(-1), grad_att.reshape(-1)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.intp(rows[i]) if rows.size else i
        clear(sums)
        clear(att_sums)
        for h in range(heads):
            at = row * heads + h
            x = spread(zero)
            for d in range(0, v_width, LANES):
                x = x + load(out, at * v_width + d, v_width - d) * load(grad_out, at * v_width + d, v_width - d)
            delta[h] = total(x) - grad_lse[at] if grad_lse.size else total(x)
            # Any finite number does for -inf: the weights are 0.
            shift[h] = zero if lse[at] == -infinity else lse[at]
        for start in range(begin[i], end[i], BLOCK):
            n = min(end[i] - start, BLOCK)
            block = start, n, row, index, edge_id
            scores(shape, block, q, k, terms, no_product, parts, weight)
            dots(v_shape, block, grad_out, v, one, parts, slope)
            if threshold:
                for j in range(0, n * lanes, LANES):
                    store(factor, j, spread(grow), LANES)
                drop(heads, block, dropout, factor)
            for h in range(0, heads, LANES):
                m_shift, m_delta = load(shift, h, LANES), load(delta, h, LANES)
                for j in range(n):
                    at = j * lanes + h
                    raw, m = load(weight, at, LANES), load(factor, at, LANES)
                    x = _clip(raw, bound) if bound < infinity else raw
                    p = exp(x - m_shift)
                    ds = p * (m * load(slope, at, LANES) - m_delta)
                    if bound < infinity:
                        ds = where_larger(raw, bound, zero, where_larger(-bound, raw, zero, ds))
                    store(weight, at, p * m, LANES)
                    store(slope, at, ds * scale, LANES)
                    if grad_bias.size:
                        edge = np.intp(edge_id[start + j]) if edge_id.size else start + j
                        store(grad_bias, edge * heads + h, ds, heads - h)
            carry(heads, block, weight, slope, carried)
            if additive or gate.size or grad_product.size:
                add_gradients(shape, block, q, k, terms, slope, grad_product, grad_gate, False, sums, att_sums)
            else:
                add_rows(shape, block, slope, k, False, sums)
        _write(shape, i, sums, ones, flat_q)
        if grad_att.size:
            _write(shape, i, att_sums, ones, flat_att)


@compiled()
def backward_sources(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    shape: Any, v_shape: Any, q: Any, k: Any, terms: Any, grad_out: Any, grad_product: Any, carried: Any,
    grad_k: Any, grad_v: Any,
) -> None:  # fmt: skip
    """What the edges of a source say, from what :func:`backward_targets` carried.

    Args:
        grad_k: ``[runs, H, D]``, written.
        grad_v: ``[runs, H, D_v]``, written.
    """
    heads = shape[0]
    number = carried.dtype
    _, _, gate, _, _, additive, _ = terms
    weight, slope = np.zeros(BLOCK * filled(heads), number), np.zeros(BLOCK * filled(heads), number)
    k_sums = np.empty(heads * blocks_of(shape) * LANES, number)
    v_sums = np.empty(heads * blocks_of(v_shape) * LANES, number)
    ones, nothing, no_rows = np.ones(heads, number), np.empty(0, number), q[:0]
    flat_k, flat_v = grad_k.reshape(-1), grad_v.reshape(-1)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.intp(rows[i]) if rows.size else i
        clear(k_sums)
        clear(v_sums)
        for start in range(begin[i], end[i], BLOCK):
            block = start, min(end[i] - start, BLOCK), row, index, edge_id
            take(heads, block, carried, weight, slope)
            add_rows(v_shape, block, weight, grad_out, True, v_sums)
            if additive or gate.size or grad_product.size:
                add_gradients(shape, block, k, q, terms, slope, grad_product, no_rows, True, k_sums, nothing)
            else:
                add_rows(shape, block, slope, q, True, k_sums)
        _write(shape, i, k_sums, ones, flat_k)
        _write(v_shape, i, v_sums, ones, flat_v)
