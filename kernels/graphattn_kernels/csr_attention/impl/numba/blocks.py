"""The loops over a block of edges that share an owner, of which every pass is made.

``mine`` are the rows of owners, ``others`` those at the other end of the edges: q and k seen from the targets, k and q
from the sources. All arrays are flat. The numbers of a block's edges stand at ``j * lanes + h`` (edge, head), heads
filled up to whole vectors; sums over edges at ``(h * blocks + i) * LANES``, channels filled up.

Arguments that most of them have:

- ``shape``: heads, channels of a head, and a tuple whose length is the vectors of a head, or empty. The length is part
  of the type, so for a head size that has a length the compiler knows it and writes the loop out.
- ``block``: where the block begins in the view, its edges, the owner, and the view's ``index`` and ``edge_id``.
- ``terms``: bias ``[E, H]`` or ``[E, 1]`` and its heads, gate ``[E, H, D]``, att ``[H, D]``, each may be empty; scale;
  whether the score is additive, and its slope.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphattn_kernels._lanes import LANES, fetch, line_of, load, spread, store, totals, where_larger
from graphattn_kernels._lanes_functions import keep
from graphattn_kernels._numba import inlined

__all__ = ["BLOCK", "add_gradients", "add_rows", "blocks_of", "carry", "clear", "dots", "drop", "filled", "row_at"]
__all__ += ["scores", "take"]

BLOCK = 64  # edges
AHEAD = 32  # edges that a row is asked for before it is needed; 16 to 64 are much the same


@inlined
def filled(count: int) -> int:
    """``count`` filled up to whole vectors."""
    return -(-count // LANES) * LANES


@inlined
def blocks_of(shape: Any) -> int:
    """Vectors of a head."""
    _, width, known = shape
    return len(known) if len(known) else max(-(-width // LANES), 1)


@inlined
def row_at(index: Any, e: int, size: int) -> Any:
    """Where the row that ``index`` names begins. Unsigned, because Numba tests signed indices for negative."""
    return np.intp(np.uintp(index[np.uintp(e)]) * np.uintp(size))  # type: ignore[return-value]


@inlined
def _edge_at(edge_id: Any, e: int, size: int) -> Any:
    """Where the row of an edge begins in edge tensors."""
    return row_at(edge_id, e, size) if edge_id.size else e * size


@inlined
def _ask(rows: Any, index: Any, e: int, size: int) -> None:
    """Ask for the row of ``size`` numbers that will be needed ``AHEAD`` edges after edge ``e``."""
    at = row_at(index, min(e + AHEAD, index.size - 1), size)
    for d in range(0, size, line_of(rows)):
        fetch(rows, at + d)


@inlined
def clear(array: Any) -> None:
    """Fill whole vectors with zeros."""
    zero = spread(array.dtype.type(0))
    for i in range(0, array.size, LANES):
        store(array, i, zero, LANES)


@inlined
def dots(shape: Any, block: Any, mine: Any, others: Any, scale: Any, parts: Any, result: Any) -> None:
    """``scale`` times the products of the owner's row with those of the other ends, for each head.

    Args:
        parts: Room for ``LANES`` numbers a head, heads filled up, zero where there is no head.
    """
    heads, width, _ = shape
    start, n, row, index, _ = block
    blocks, lanes, size = blocks_of(shape), filled(heads), heads * width
    whole = (blocks - 1) * LANES
    rest = width - whole
    for j in range(n):
        a, b = row * size, row_at(index, start + j, size)
        _ask(others, index, start + j, size)
        for h in range(heads):
            x = load(mine, a + whole, rest) * load(others, b + whole, rest)
            for d in range(0, whole, LANES):
                x = x + load(mine, a + d, LANES) * load(others, b + d, LANES)
            store(parts, h * LANES, x, LANES)
            a += width
            b += width
        for h in range(0, heads, LANES):
            store(result, j * lanes + h, totals(parts, h * LANES) * scale, LANES)


@inlined
def add_rows(shape: Any, block: Any, weight: Any, others: Any, ask: bool, result: Any) -> None:
    """Add the rows of the other ends, weighted, to ``result``.

    Args:
        ask: Ask for the rows ahead (unless another loop has just done so).
    """
    heads, width, _ = shape
    start, n, _, index, _ = block
    blocks, lanes, size = blocks_of(shape), filled(heads), heads * width
    if ask:
        for j in range(n):
            _ask(others, index, start + j, size)
    # Over all edges for a vector or two of a head: their sums stay in registers.
    for h in range(heads):
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
def scores(shape: Any, block: Any, mine: Any, others: Any, terms: Any, product: Any, parts: Any, score: Any) -> None:
    """Scores before the clamp.

    Args:
        product: ``[E, H, D]``, written; may be empty.
    """
    heads, _, _ = shape
    start, n, _, _, edge_id = block
    bias, bias_heads, gate, _, scale, additive, _ = terms
    lanes = filled(heads)
    if additive or gate.size or product.size:
        _scores_with_terms(shape, block, mine, others, terms, product, parts, score)
    else:
        dots(shape, block, mine, others, scale, parts, score)
    if bias_heads == 0:
        return
    for j in range(n):
        edge = _edge_at(edge_id, start + j, bias_heads)
        for h in range(0, heads, LANES):
            x = load(score, j * lanes + h, LANES)
            x = x + (load(bias, edge + h, heads - h) if bias_heads > 1 else spread(bias[np.uintp(edge)]))
            store(score, j * lanes + h, x, LANES)


@inlined
def _scores_with_terms(
    shape: Any, block: Any, mine: Any, others: Any, terms: Any, product: Any, parts: Any, score: Any
) -> None:
    heads, width, _ = shape
    start, n, row, index, edge_id = block
    _, _, gate, att, scale, additive, slope = terms
    blocks, lanes, size = blocks_of(shape), filled(heads), heads * width
    zero = scale - scale
    for j in range(n):
        a, b, edge = row * size, row_at(index, start + j, size), _edge_at(edge_id, start + j, size)
        _ask(others, index, start + j, size)
        if gate.size and edge_id.size:
            _ask(gate, edge_id, start + j, size)
        for h in range(heads):
            x = spread(zero)
            for i in range(blocks):
                d = h * width + i * LANES
                count = width - i * LANES if i == blocks - 1 else LANES
                y, z = load(mine, a + d, count), load(others, b + d, count)
                if additive:
                    y = y + z
                    if gate.size:
                        y = y + load(gate, edge + d, count)
                    y = where_larger(y, zero, y, y * slope)
                    if att.size:
                        y = y * load(att, d, count)
                else:
                    y = y * z
                    if gate.size:
                        y = y * load(gate, edge + d, count)
                    if product.size:
                        store(product, edge + d, y * scale, count)
                x = x + y
            store(parts, h * LANES, x, LANES)
        for h in range(0, heads, LANES):
            store(score, j * lanes + h, totals(parts, h * LANES) * scale, LANES)


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
        a, b, edge = row * size, row_at(index, start + j, size), _edge_at(edge_id, start + j, size)
        if ask:
            _ask(others, index, start + j, size)
            if gate.size and edge_id.size:
                _ask(gate, edge_id, start + j, size)
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
def carry(heads: int, block: Any, weight: Any, slope: Any, carried: Any) -> None:
    """Keep two numbers for each head of the block's edges in ``carried``, ``[E, 2, H]``."""
    start, n, _, _, edge_id = block
    for j in range(n):
        at = _edge_at(edge_id, start + j, 2 * heads)
        for h in range(0, heads, LANES):
            store(carried, at + h, load(weight, j * filled(heads) + h, LANES), heads - h)
            store(carried, at + heads + h, load(slope, j * filled(heads) + h, LANES), heads - h)


@inlined
def take(heads: int, block: Any, carried: Any, weight: Any, slope: Any) -> None:
    """What :func:`carry` kept."""
    start, n, _, _, edge_id = block
    for j in range(n):
        at = _edge_at(edge_id, start + j, 2 * heads)
        if edge_id.size:
            _ask(carried, edge_id, start + j, 2 * heads)
        for h in range(0, heads, LANES):
            store(weight, j * filled(heads) + h, load(carried, at + h, heads - h), LANES)
            store(slope, j * filled(heads) + h, load(carried, at + heads + h, heads - h), LANES)


@inlined
def _mix(x: Any) -> Any:
    """``_random._mix`` on one number."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@inlined
def drop(heads: int, block: Any, dropout: Any, factor: Any) -> None:
    """``_random.dropout_scale`` for the edges of a block: 0 in place of the numbers of ``factor`` that are dropped."""
    start, n, _, _, edge_id = block
    low, high, threshold, _ = dropout
    for j in range(n):
        edge = _edge_at(edge_id, start + j, 1)
        counter = _mix((edge & 0xFFFFFFFF) ^ low)
        counter = _mix(counter ^ (edge >> 32) ^ high)
        for h in range(0, heads, LANES):
            at = j * filled(heads) + h
            store(factor, at, keep(counter, h, threshold, load(factor, at, LANES)), LANES)
