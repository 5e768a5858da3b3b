"""The compiled passes: each takes a range of runs of edges and writes results of those only, so threads never meet."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphattn_kernels._lanes import LANES, fetch, load, spread, store, total, where_larger
from graphattn_kernels._lanes_functions import exp, log
from graphattn_kernels._numba import compiled, inlined
from graphattn_kernels.csr_attention.impl.numba.blocks import (
    AHEAD,
    BLOCK,
    add_gradients,
    add_rows,
    blocks_of,
    clear,
    dots,
    drop,
    filled,
    row_at,
    scores,
)

__all__ = ["backward", "forward", "prepare"]


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
def backward(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    by_source: bool, shape: Any, v_shape: Any, mine: Any, others: Any, my_values: Any, other_values: Any, stats: Any,
    terms: Any, bound: Any, dropout: Any, grad_product: Any, grad_bias: Any, grad_gate: Any, grad_mine: Any, more: Any,
) -> None:  # fmt: skip
    """Gradients of the owners' rows, from the weights that the log-sum-exp gives again.

    The pass over targets has q, k, the gradient of the output and v as ``mine``, ``others``, ``my_values`` and
    ``other_values``; it writes the gradients of the bias and the gate, too. The pass over sources has k, q, v and the
    gradient of the output.

    Args:
        stats: See :func:`prepare`.
        grad_product: ``[E, H, D]``, or empty.
        grad_bias: ``[E, H]``, written by the pass over targets; may be empty.
        grad_gate: ``[E, H, D]``, written by the pass over targets; may be empty.
        grad_mine: ``[runs, H, D]``, written.
        more: ``[runs, H, *]``, written: what the run adds to the gradient of att (may be empty); in the pass over
            sources, the gradient of v.
    """
    heads = shape[0]
    lanes = filled(heads)
    number = stats.dtype.type
    zero, one, infinity = number(0), number(1), number(np.inf)
    _, _, gate, _, scale, additive, _ = terms
    threshold, grow = dropout[2:]
    plain = not (additive or gate.size or grad_product.size)
    no_product, last_edge = grad_product[:0], index.size - 1
    weight, slope = np.zeros(BLOCK * lanes, stats.dtype), np.zeros(BLOCK * lanes, stats.dtype)
    factor, parts = np.full(BLOCK * lanes, grow, stats.dtype), np.zeros(lanes * LANES, stats.dtype)
    ones = np.full(heads, one, stats.dtype)
    more_blocks = blocks_of(v_shape) if by_source else blocks_of(shape)
    sums = np.empty(heads * blocks_of(shape) * LANES, stats.dtype)
    more_sums = np.empty(heads * more_blocks * LANES if more.size else 0, stats.dtype)
    flat, flat_more = grad_mine.reshape(-1), more.reshape(-1)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.intp(rows[i]) if rows.size else i
        clear(sums)
        clear(more_sums)
        for start in range(begin[i], end[i], BLOCK):
            n = min(end[i] - start, BLOCK)
            block = start, n, row, index, edge_id
            scores(shape, block, mine, others, terms, no_product, parts, weight)
            dots(v_shape, block, my_values, other_values, one, parts, slope)
            if threshold:
                for j in range(0, n * lanes, LANES):
                    store(factor, j, spread(grow), LANES)
                drop(heads, block, dropout, factor)
            for j in range(n):
                target = row * 2 * heads
                if by_source:
                    target = row_at(index, start + j, 2 * heads)
                    fetch(stats, row_at(index, min(start + j + AHEAD, last_edge), 2 * heads))
                for h in range(0, heads, LANES):
                    at = j * lanes + h
                    raw, m = load(weight, at, LANES), load(factor, at, LANES)
                    x = _clip(raw, bound) if bound < infinity else raw
                    p = exp(x - load(stats, target + h, heads - h))
                    ds = p * (m * load(slope, at, LANES) - load(stats, target + heads + h, heads - h))
                    if bound < infinity:
                        ds = where_larger(raw, bound, zero, where_larger(-bound, raw, zero, ds))
                    store(weight, at, p * m, LANES)
                    store(slope, at, ds * scale, LANES)
                    if grad_bias.size and not by_source:
                        edge = np.intp(edge_id[start + j]) if edge_id.size else start + j
                        store(grad_bias, edge * heads + h, ds, heads - h)
            if by_source:
                add_rows(v_shape, block, weight, other_values, False, more_sums)
            if plain:
                add_rows(shape, block, slope, others, False, sums)
            else:
                gate_slopes = grad_gate[:0] if by_source else grad_gate
                att_sums = more_sums[:0] if by_source else more_sums
                add_gradients(shape, block, mine, others, terms, slope, grad_product, gate_slopes, sums, att_sums)
        _write(shape, i, sums, ones, flat)
        if more.size:
            if by_source:
                _write(v_shape, i, more_sums, ones, flat_more)
            else:
                _write(shape, i, more_sums, ones, flat_more)
