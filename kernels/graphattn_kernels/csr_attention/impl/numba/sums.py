"""Sums over a block of edges that share an owner; arguments and layout: see ``blocks``."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphattn_kernels._lanes import LANES, load, spread, store, where_larger
from graphattn_kernels._numba import inlined
from graphattn_kernels.csr_attention.impl.numba.blocks import ask_for, blocks_of, edge_at, filled, row_at

__all__ = ["add_gradients", "add_rows", "write_gradients"]

_TOGETHER = 8  # vectors that :func:`_add_together` writes out


@inlined
def add_rows(shape: Any, block: Any, weight: Any, others: Any, ask: bool, result: Any) -> None:
    """Add the rows of the other ends, weighted, to ``result``.

    Args:
        ask: Ask for the rows ahead (unless another loop has just done so).
    """
    heads, width, known = shape
    start, n, _, index, _ = block
    blocks, lanes, size = blocks_of(shape), filled(heads), heads * width
    if ask:
        for j in range(n):
            ask_for(others, index, start + j, size)
    # Over all edges for a few vectors: their sums stay in registers.
    done = 0
    if len(known) and width == blocks * LANES and _TOGETHER % blocks == 0:
        group = _TOGETHER // blocks
        done = heads // group * group
        for h in range(0, done, group):
            _add_together(block, blocks, lanes, size, h, weight, others, result)
    for h in range(done, heads):
        at, offset = h * blocks * LANES, h * width
        for _ in range(width // (2 * LANES)):
            x, y = load(result, at, LANES), load(result, at + LANES, LANES)
            for j in range(n):
                b = row_at(index, start + j, size) + offset
                w = spread(weight[np.uintp(j * lanes + h)])
                x = x + w * load(others, b, LANES)
                y = y + w * load(others, b + LANES, LANES)
            store(result, at, x, LANES)
            store(result, at + LANES, y, LANES)
            at += 2 * LANES
            offset += 2 * LANES
        while offset < (h + 1) * width:
            rest = (h + 1) * width - offset
            x = load(result, at, LANES)
            for j in range(n):
                b = row_at(index, start + j, size) + offset
                x = x + spread(weight[np.uintp(j * lanes + h)]) * load(others, b, rest)
            store(result, at, x, LANES)
            at += LANES
            offset += LANES


@inlined
def _add_together(
    block: Any, blocks: int, lanes: int, size: int, h: int, weight: Any, others: Any, result: Any
) -> None:
    """:func:`add_rows` for ``_TOGETHER`` vectors, those of whole heads from head ``h`` on.

    One loop over the edges for all of them: its end is predicted wrongly once, and eight sums wait for none another.
    """
    start, n, _, index, _ = block
    at = h * blocks * LANES
    x0, x1 = load(result, at, LANES), load(result, at + LANES, LANES)
    x2, x3 = load(result, at + 2 * LANES, LANES), load(result, at + 3 * LANES, LANES)
    x4, x5 = load(result, at + 4 * LANES, LANES), load(result, at + 5 * LANES, LANES)
    x6, x7 = load(result, at + 6 * LANES, LANES), load(result, at + 7 * LANES, LANES)
    for j in range(n):
        b, w = row_at(index, start + j, size) + at, j * lanes + h
        x0 = x0 + _weighted(weight, w, others, b)
        x1 = x1 + _weighted(weight, w + 1 // blocks, others, b + LANES)
        x2 = x2 + _weighted(weight, w + 2 // blocks, others, b + 2 * LANES)
        x3 = x3 + _weighted(weight, w + 3 // blocks, others, b + 3 * LANES)
        x4 = x4 + _weighted(weight, w + 4 // blocks, others, b + 4 * LANES)
        x5 = x5 + _weighted(weight, w + 5 // blocks, others, b + 5 * LANES)
        x6 = x6 + _weighted(weight, w + 6 // blocks, others, b + 6 * LANES)
        x7 = x7 + _weighted(weight, w + 7 // blocks, others, b + 7 * LANES)
    store(result, at, x0, LANES)
    store(result, at + LANES, x1, LANES)
    store(result, at + 2 * LANES, x2, LANES)
    store(result, at + 3 * LANES, x3, LANES)
    store(result, at + 4 * LANES, x4, LANES)
    store(result, at + 5 * LANES, x5, LANES)
    store(result, at + 6 * LANES, x6, LANES)
    store(result, at + 7 * LANES, x7, LANES)


@inlined
def _weighted(weight: Any, w: int, others: Any, b: Any) -> Any:
    return spread(weight[np.uintp(w)]) * load(others, b, LANES)


@inlined
def add_gradients(
    shape: Any, block: Any, mine: Any, others: Any, terms: Any, slopes: Any, grad_product: Any, grad_gate: Any,
    ask: bool, result: Any, grad_att: Any,
) -> None:  # fmt: skip
    """Add the gradient of the owner's row to ``result``, that of att to ``grad_att``, and write that of the gate.

    Args:
        slopes: Gradients of the scores, times the scale.
        grad_product: ``[E, H, D]``, or empty.
        grad_gate: ``[E, H, D]``, or empty.
        ask: See :func:`add_rows`.
        grad_att: Laid out as ``result``, or empty.
    """
    heads, width, _ = shape
    start, n, row, index, edge_id = block
    _, _, gate, att, scale, additive, slope = terms
    blocks, lanes, size = blocks_of(shape), filled(heads), heads * width
    zero = scale - scale
    for j in range(n):
        a, b, edge = row * size, row_at(index, start + j, size), edge_at(edge_id, start + j, size)
        if ask:
            ask_for(others, index, start + j, size)
            if gate.size and edge_id.size:
                ask_for(gate, edge_id, start + j, size)
        at = 0
        for h in range(heads):
            ds = spread(slopes[np.uintp(j * lanes + h)])
            for i in range(blocks):
                d = h * width + i * LANES
                count = width - i * LANES if i == blocks - 1 else LANES
                y, z = load(mine, a + d, count), load(others, b + d, count)
                if additive:
                    x = y + z
                    if gate.size:
                        x = x + load(gate, edge + d, count)
                    if grad_att.size:
                        part = load(grad_att, at, LANES) + ds * where_larger(x, zero, x, x * slope)
                        store(grad_att, at, part, LANES)
                    x = where_larger(x, zero, ds, ds * slope)
                    if att.size:
                        x = x * load(att, d, count)
                    if grad_gate.size:
                        store(grad_gate, edge + d, x, count)
                else:
                    x = ds
                    if grad_product.size:
                        x = x + load(grad_product, edge + d, count) * scale
                    if grad_gate.size:
                        store(grad_gate, edge + d, x * y * z, count)
                    x = x * z
                    if gate.size:
                        x = x * load(gate, edge + d, count)
                store(result, at, load(result, at, LANES) + x, LANES)
                at += LANES


@inlined
def write_gradients(
    shape: Any, block: Any, slopes: Any, q: Any, weight: Any, grad_out: Any, grad_edge_rows: Any
) -> None:
    """Write the gradients of the edges' own rows; the other ends are targets.

    Args:
        slopes: Gradients of the scores, times the scale.
        weight: Of the values, after dropout.
        grad_edge_rows: ``[E, H, D]``.
    """
    heads, width, _ = shape
    start, n, _, index, edge_id = block
    blocks, lanes, size = blocks_of(shape), filled(heads), heads * width
    for j in range(n):
        b, edge = row_at(index, start + j, size), row_at(edge_id, start + j, size)
        for h in range(heads):
            ds, w = spread(slopes[np.uintp(j * lanes + h)]), spread(weight[np.uintp(j * lanes + h)])
            for i in range(blocks):
                d = h * width + i * LANES
                count = width - i * LANES if i == blocks - 1 else LANES
                x = ds * load(q, b + d, count) + w * load(grad_out, b + d, count)
                store(grad_edge_rows, edge + d, x, count)
