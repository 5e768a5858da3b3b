"""The loops over a block of edges that share an owner, of which every pass is made; sums over edges: ``sums``.

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

__all__ = ["BLOCK", "add_dots", "ask_for", "blocks_of", "carry", "clear", "dots", "drop", "edge_at", "filled", "row_at"]
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
def edge_at(edge_id: Any, e: int, size: int) -> Any:
    """Where the row of an edge begins in edge tensors."""
    return row_at(edge_id, e, size) if edge_id.size else e * size


@inlined
def ask_for(rows: Any, index: Any, e: int, size: int) -> None:
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
    lanes, size = filled(heads), heads * width
    for j in range(n):
        ask_for(others, index, start + j, size)
        _multiply(shape, mine, row * size, others, row_at(index, start + j, size), parts)
        for h in range(0, heads, LANES):
            store(result, j * lanes + h, totals(parts, h * LANES) * scale, LANES)


@inlined
def add_dots(
    shape: Any, block: Any, edge_rows: Any, ends: Any, of_owner: bool, scale: Any, parts: Any, result: Any
) -> None:
    """Add ``scale`` times the products of the edges' own rows with those of one of their ends to ``result``.

    Args:
        ends: Rows of owners, or of the other ends.
        of_owner: Which of them.
        parts: See :func:`dots`.
    """
    heads, width, _ = shape
    start, n, row, index, edge_id = block
    lanes, size = filled(heads), heads * width
    for j in range(n):
        ask_for(edge_rows, edge_id, start + j, size)
        a, b = row_at(edge_id, start + j, size), row * size if of_owner else row_at(index, start + j, size)
        _multiply(shape, edge_rows, a, ends, b, parts)
        for h in range(0, heads, LANES):
            at = j * lanes + h
            store(result, at, load(result, at, LANES) + totals(parts, h * LANES) * scale, LANES)


@inlined
def _multiply(shape: Any, x: Any, a: Any, y: Any, b: Any, parts: Any) -> None:
    """Products of two rows, summed up to ``LANES`` numbers a head."""
    heads, width, _ = shape
    whole = (blocks_of(shape) - 1) * LANES
    rest = width - whole
    for h in range(heads):
        z = load(x, a + whole, rest) * load(y, b + whole, rest)
        for d in range(0, whole, LANES):
            z = z + load(x, a + d, LANES) * load(y, b + d, LANES)
        store(parts, h * LANES, z, LANES)
        a += width
        b += width


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
        edge = edge_at(edge_id, start + j, bias_heads)
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
        a, b, edge = row * size, row_at(index, start + j, size), edge_at(edge_id, start + j, size)
        ask_for(others, index, start + j, size)
        if gate.size and edge_id.size:
            ask_for(gate, edge_id, start + j, size)
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
def carry(heads: int, block: Any, slope: Any, carried: Any) -> None:
    """Keep a number for each head of the block's edges in ``carried``, ``[E, H]``."""
    start, n, _, _, edge_id = block
    for j in range(n):
        at = edge_at(edge_id, start + j, heads)
        for h in range(0, heads, LANES):
            store(carried, at + h, load(slope, j * filled(heads) + h, LANES), heads - h)


@inlined
def take(heads: int, block: Any, carried: Any, scale: Any, slope: Any) -> None:
    """What :func:`carry` kept, times ``scale``."""
    start, n, _, _, edge_id = block
    for j in range(n):
        at = edge_at(edge_id, start + j, heads)
        if edge_id.size:
            ask_for(carried, edge_id, start + j, heads)
        for h in range(0, heads, LANES):
            store(slope, j * filled(heads) + h, load(carried, at + h, heads - h) * scale, LANES)


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
        edge = edge_at(edge_id, start + j, 1)
        counter = _mix((edge & 0xFFFFFFFF) ^ low)
        counter = _mix(counter ^ (edge >> 32) ^ high)
        for h in range(0, heads, LANES):
            at = j * filled(heads) + h
            store(factor, at, keep(counter, h, threshold, load(factor, at, LANES)), LANES)
