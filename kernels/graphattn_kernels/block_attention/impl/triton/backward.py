"""Backward kernels: a pass over rows of targets for dq, a pass over rows of sources for dk and dv, and sums over the
parts of long rows. Weights are computed again from the log-sum-exp; nothing is added atomically."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

from graphattn_kernels.block_attention.impl.triton.primitives import (
    LOG2E,
    RUNTIME,
    SINGLE,
    bounded,
    dot,
    edges,
    load_parts,
    load_rows,
    locate,
    origin,
    parts,
    program,
    store_rows,
    tile_at,
    tokens,
    words,
)

__all__ = ["column_kernel", "row_kernel", "sum_kernel"]


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SINGLE)
def row_kernel(
    Q, K, V, OUT, LSE, GRAD_OUT, GRAD_LSE, STATS, GRAD_Q, INDEX, SLOT, MASK, TARGET, SOURCE, ROW, BEGIN, END, PART_Q,
    num_runs, num_parts, shared,
    target_blocks, source_blocks, heads, num_targets, num_sources, target_places, source_places,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, scale, bound,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    LEADING: tl.constexpr, CLAMPED: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Owners are targets. STATS ``[B * H, places, 4]`` gets, for the column pass, the log-sum-exp in powers of 2 (+inf
    where no weight is to come out), delta = out . grad_out - grad_lse, and two zeros."""
    run, entry, strip = program(num_runs, num_parts, shared, BM // M)
    row = tl.load(ROW + run)
    if row < 0:
        return
    block, batch, head = locate(row, entry, target_blocks, heads, LEADING)
    batch = batch.to(tl.int64)
    head = head.to(tl.int64)
    here = strip * M + tl.arange(0, M)
    first, local, valid = tokens(TARGET, block * BM, here, target_places)
    factor = LOG2E if CLAMPED else scale * LOG2E

    at_head = (batch * num_targets + first + local) * heads + head
    base = origin(batch * num_targets, heads * DV, head, DV, ALIGN)
    grad_out = load_rows(GRAD_OUT, base, first, local, heads * DV, valid, DV, DVP, ALIGN, False)
    out = load_rows(OUT, base, first, local, heads * DV, valid, DV, DVP, ALIGN, False)
    delta = tl.sum(grad_out.to(tl.float32) * out.to(tl.float32), 1)
    if GRAD_LSE is not None:
        delta -= tl.load(GRAD_LSE + at_head, mask=valid, other=0.0)
    lse = tl.load(LSE + at_head, mask=valid, other=float("-inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    # The parts of a row all store the same numbers.
    at_stats = STATS + ((batch * heads + head) * target_blocks * BM + block * BM + here) * 4
    tl.store(at_stats, lse)
    tl.store(at_stats + 1, delta)
    tl.store(at_stats + 2, tl.zeros_like(delta))
    tl.store(at_stats + 3, tl.zeros_like(delta))

    q = load_rows(Q, origin(batch, q_b, head, q_h, ALIGN), first, local, q_t, valid, D, DP, ALIGN, False)
    k_base = origin(batch, k_b, head, k_h, ALIGN)
    v_base = origin(batch, v_b, head, v_h, ALIGN)
    grad_q = tl.zeros([M, DP], tl.float32)
    last = tl.load(END + run) * (BN // N)
    first_step = tl.load(BEGIN + run) * (BN // N)
    start, slot = tile_at(INDEX, SLOT, first_step, last, BN, N)
    begin, other, there = tokens(SOURCE, start, tl.arange(0, N), source_places)
    for step in range(first_step, last):
        partial = slot >= 0
        bits = words(MASK, slot, here, start, BM, BN, N)
        k = load_rows(K, k_base, begin, other, k_t, there, D, DP, ALIGN, EVEN)
        v = load_rows(V, v_base, begin, other, v_t, there, DV, DVP, ALIGN, EVEN)
        start, slot = tile_at(INDEX, SLOT, step + 1, last, BN, N)
        begin, other, there = tokens(SOURCE, start, tl.arange(0, N), source_places)
        score = dot(q, tl.trans(k), None, PRECISION)
        if CLAMPED:
            score = score * scale
            inside = tl.abs(score) <= bound
            score = bounded(score, bound)
        weight = tl.exp2(score * factor - lse[:, None])
        if partial:
            weight = tl.where(edges(bits, N), weight, 0.0)
        slope = weight * (dot(grad_out, tl.trans(v), None, PRECISION) - delta[:, None])
        if CLAMPED:
            slope = tl.where(inside, slope, 0.0)
        grad_q = dot(slope.to(k.dtype), k, grad_q, PRECISION)

    grad_q *= scale
    if PART_Q is not None:
        if run < num_parts:
            part = (run * shared + entry).to(tl.int64)
            store_rows(PART_Q, part * (BM * D), here, D, valid, grad_q, D, DP)
            return
    store_rows(GRAD_Q, 0, at_head, D, valid, grad_q, D, DP)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SINGLE)
def column_kernel(
    Q, K, V, GRAD_OUT, STATS, GRAD_K, GRAD_V, INDEX, SLOT, MASK, TARGET, SOURCE, ROW, BEGIN, END, PART_K, PART_V,
    num_runs, num_parts, shared,
    target_blocks, source_blocks, heads, num_targets, num_sources, target_places, source_places,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, scale, bound,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    LEADING: tl.constexpr, CLAMPED: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Owners are sources (BM, M), tiles lead to targets (BN, N); scores stand transposed, ``[source, target]``."""
    run, entry, strip = program(num_runs, num_parts, shared, BM // M)
    row = tl.load(ROW + run)
    if row < 0:
        return
    block, batch, head = locate(row, entry, source_blocks, heads, LEADING)
    batch = batch.to(tl.int64)
    head = head.to(tl.int64)
    here = strip * M + tl.arange(0, M)
    first, local, valid = tokens(SOURCE, block * BM, here, source_places)
    k = load_rows(K, origin(batch, k_b, head, k_h, ALIGN), first, local, k_t, valid, D, DP, ALIGN, False)
    v = load_rows(V, origin(batch, v_b, head, v_h, ALIGN), first, local, v_t, valid, DV, DVP, ALIGN, False)
    factor = LOG2E if CLAMPED else scale * LOG2E

    q_base = origin(batch, q_b, head, q_h, ALIGN)
    grad_base = origin(batch * num_targets, heads * DV, head, DV, ALIGN)
    stats = STATS + (batch * heads + head) * target_blocks * (4 * BN)
    grad_k = tl.zeros([M, DP], tl.float32)
    grad_v = tl.zeros([M, DVP], tl.float32)
    last = tl.load(END + run) * (BN // N)
    first_step = tl.load(BEGIN + run) * (BN // N)
    start, slot = tile_at(INDEX, SLOT, first_step, last, BN, N)
    begin, other, there = tokens(TARGET, start, tl.arange(0, N), target_places)
    for step in range(first_step, last):
        partial = slot >= 0
        bits = words(MASK, slot, here, start, BM, BN, N)
        q = load_rows(Q, q_base, begin, other, q_t, there, D, DP, ALIGN, EVEN)
        grad_out = load_rows(GRAD_OUT, grad_base, begin, other, heads * DV, there, DV, DVP, ALIGN, EVEN)
        # In fours, because Triton lets every thread load a vector shorter than the threads by itself, all of it.
        quads = tl.load(stats + start.to(tl.int64) * 4 + tl.arange(0, 4 * N))
        even, odd = tl.split(tl.reshape(quads, (N, 2, 2)))
        lse, _ = tl.split(even)
        delta, _ = tl.split(odd)
        start, slot = tile_at(INDEX, SLOT, step + 1, last, BN, N)
        begin, other, there = tokens(TARGET, start, tl.arange(0, N), target_places)
        score = dot(k, tl.trans(q), None, PRECISION)
        if CLAMPED:
            score = score * scale
            inside = tl.abs(score) <= bound
            score = bounded(score, bound)
        weight = tl.exp2(score * factor - lse[None, :])
        if partial:
            weight = tl.where(edges(bits, N), weight, 0.0)
        grad_v = dot(weight.to(grad_out.dtype), grad_out, grad_v, PRECISION)
        slope = weight * (dot(v, tl.trans(grad_out), None, PRECISION) - delta[None, :])
        if CLAMPED:
            slope = tl.where(inside, slope, 0.0)
        grad_k = dot(slope.to(q.dtype), q, grad_k, PRECISION)

    grad_k *= scale
    if PART_K is not None:
        if run < num_parts:
            part = (run * shared + entry).to(tl.int64)
            store_rows(PART_K, part * (BM * D), here, D, valid, grad_k, D, DP)
            store_rows(PART_V, part * (BM * DV), here, DV, valid, grad_v, DV, DVP)
            return
    at_head = (batch * num_sources + first + local) * heads + head
    store_rows(GRAD_K, 0, at_head, D, valid, grad_k, D, DP)
    store_rows(GRAD_V, 0, at_head, DV, valid, grad_v, DV, DVP)


@triton.jit
def _sum_parts(
    OUT, PARTS, at_head, here, valid, begin, end, shared, entry,
    BM: tl.constexpr, B: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([here.shape[0], DP], tl.float32)
    for some in range(begin, end, B):
        part, there = parts(some, end, shared, entry, B)
        total += tl.sum(load_parts(PARTS, part, there, here, BM, D, DP), 0)
    store_rows(OUT, 0, at_head, D, valid, total, D, DP)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SINGLE)
def sum_kernel(
    X, PART_X, Y, PART_Y, ORDER, HUB_ROW, PART_PTR, COUNT,
    num_hubs, shared, blocks, heads, num_tokens, places,
    DX: tl.constexpr, DXP: tl.constexpr, DY: tl.constexpr, DYP: tl.constexpr,
    BM: tl.constexpr, M: tl.constexpr, B: tl.constexpr, LEADING: tl.constexpr,
):  # fmt: skip
    """Rows that were cut, from their parts, for X ``[.., DX]`` and, where it is not None, Y ``[.., DY]``."""
    hub, entry, strip = program(num_hubs, 0, shared, BM // M)
    if hub >= tl.load(COUNT):
        return
    block, batch, head = locate(tl.load(HUB_ROW + hub), entry, blocks, heads, LEADING)
    here = strip * M + tl.arange(0, M)
    first, local, valid = tokens(ORDER, block * BM, here, places)
    at_head = (batch.to(tl.int64) * num_tokens + first + local) * heads + head
    begin = tl.load(PART_PTR + hub)
    end = tl.load(PART_PTR + hub + 1)
    _sum_parts(X, PART_X, at_head, here, valid, begin, end, shared, entry, BM, B, DX, DXP)
    if Y is not None:
        _sum_parts(Y, PART_Y, at_head, here, valid, begin, end, shared, entry, BM, B, DY, DYP)
