"""Backward kernels: a pass over rows for dq and the edges, a pass over columns for dk and dv, and sums over the
parts of hubs. Weights are computed again from the log-sum-exp; nothing is added atomically."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

from graphattn_kernels._triton import join
from graphattn_kernels.csr_attention.impl.triton.primitives import (
    RUNTIME,
    SCALARS,
    bounded,
    channels,
    dropout_factor,
    gather_rows,
    leaky,
    load_att,
    load_edges,
    load_rows,
    load_runs,
    load_stats,
    store_edges,
    store_rows,
    sum_scores,
    terms_of,
)

__all__ = ["column_kernel", "row_kernel", "sum_kernel"]


@triton.jit
def _steepness(total, att, slant):
    """Derivative of the terms of an additive score by what stands inside the LeakyReLU."""
    return att[None, :, None, :] * tl.where(total > 0, 1.0, slant)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SCALARS)
def row_kernel(
    Q, K, V, BIAS, GATE, EDGE_ROWS, ATT, SEED, OUT, LSE, GRAD_OUT, GRAD_LSE, GRAD_PRODUCT, STATS,
    GRAD_Q, GRAD_BIAS, GRAD_GATE, GRAD_EDGE_ROWS, PART_ATT, INDEX, EDGE, ROW, BEGIN, END, PART_Q,
    num_runs, num_parts, q_n, k_n, v_n, bias_e, bias_h, scale, scale_low, clamp, clamp_low,
    negative_slope, negative_slope_low, inverse_keep, inverse_keep_low, threshold,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, ADDITIVE: tl.constexpr, CLAMPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows are targets. STATS ``[T, H, 2]`` gets lse and delta = out . grad_out - grad_lse for the column pass,
    PART_ATT ``[programs, H, D]`` the gradient of ATT."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_runs, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    offset, exists = channels(head, H, D, HB, DP)
    v_offset, v_exists = channels(head, H, DV, HB, DVP)
    factor = join(scale, scale_low, ACC)
    bound = join(clamp, clamp_low, ACC)
    slant = join(negative_slope, negative_slope_low, ACC)
    inverse = join(inverse_keep, inverse_keep_low, ACC)

    valid = row >= 0
    q = load_rows(Q, row, q_n, offset, exists, valid, ACC)
    att = None
    if ADDITIVE:
        att = load_att(ATT, offset, exists, factor, HB, DP, ACC)
    else:
        q *= factor
    grad_out = load_rows(GRAD_OUT, row, H * DV, v_offset, v_exists, valid, ACC)
    out = load_rows(OUT, row, H * DV, v_offset, v_exists, valid, ACC)
    at_head = (row * H)[:, None] + head[None, :]
    mask = valid[:, None] & (head < H)[None, :]
    lse = tl.load(LSE + at_head, mask=mask, other=0.0)
    # A target all of whose scores are -inf has no weights: any finite number in place of its lse keeps exp at 0.
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    delta = tl.sum(grad_out * out, 2)
    if GRAD_LSE is not None:
        delta -= tl.load(GRAD_LSE + at_head, mask=mask, other=0.0)
    # The parts of a hub all store the same numbers.
    tl.store(STATS + at_head * 2, lse, mask=mask)
    tl.store(STATS + at_head * 2 + 1, delta, mask=mask)

    grad_q = tl.zeros([R, HB, DP], ACC)
    grad_att = tl.zeros([R, HB, DP], ACC)
    next_at = begin[:, None] + tl.arange(0, U)[None, :]
    next_index = tl.load(INDEX + next_at, mask=next_at < end[:, None], other=0)
    for _ in range(0, tl.max(end - begin, 0), U):
        at = next_at
        there = at < end[:, None]
        source = next_index.to(tl.int64)
        # Asked for one step ahead: rows can be gathered as soon as the step begins.
        next_at = at + U
        next_index = tl.load(INDEX + next_at, mask=next_at < end[:, None], other=0)
        k = gather_rows(K, source, k_n, offset, exists, there, ACC)
        v = gather_rows(V, source, v_n, v_offset, v_exists, there, ACC)
        edge = load_edges(EDGE, at, there)
        if EDGE_ROWS is not None:
            own = gather_rows(EDGE_ROWS, edge, H * D, offset, exists, there, ACC)
            k += own
            v += own
        gate = None
        if GATE is not None:
            gate = gather_rows(GATE, edge, H * D, offset, exists, there, ACC)
        terms, total = terms_of(q, k, gate, att, slant, ADDITIVE)
        score = sum_scores(terms, BIAS, bias_e, bias_h, edge, there, head, H)
        clamped = score
        if CLAMPED:
            clamped = bounded(score, bound)
        weight = tl.where(there[:, None, :], tl.exp(clamped - lse[:, :, None]), 0.0)
        slope = tl.sum(grad_out[:, :, None, :] * v, 3)
        kept = weight
        if SEED is not None:
            drop = dropout_factor(SEED, edge, head, threshold, inverse)
            slope *= drop
            kept *= drop
        slope = weight * (slope - delta[:, :, None])
        if CLAMPED:
            slope = tl.where(tl.abs(score) <= bound, slope, 0.0)
        if GRAD_BIAS is not None:
            tl.store(
                GRAD_BIAS + (edge * H)[:, None, :] + head[None, :, None],
                slope.to(GRAD_BIAS.dtype.element_ty),
                mask=there[:, None, :] & (head < H)[None, :, None],
            )
        if ADDITIVE:
            grad_total = slope[:, :, :, None] * _steepness(total, att, slant)
            if GATE is not None:
                store_edges(GRAD_GATE, edge, H * D, offset, exists, grad_total, there)
            if PART_ATT is not None:
                grad_att += tl.sum(slope[:, :, :, None] * leaky(total, slant), 2)
            grad_q += tl.sum(grad_total, 2)
        else:
            grad_terms = slope[:, :, :, None]
            if GRAD_PRODUCT is not None:
                grad_terms += gather_rows(GRAD_PRODUCT, edge, H * D, offset, exists, there, ACC)
            if GATE is not None:
                store_edges(GRAD_GATE, edge, H * D, offset, exists, grad_terms * q[:, :, None, :] * k, there)
                k *= gate
            if EDGE_ROWS is not None:
                grad_own = grad_terms * q[:, :, None, :] + kept[:, :, :, None] * grad_out[:, :, None, :]
                store_edges(GRAD_EDGE_ROWS, edge, H * D, offset, exists, grad_own, there)
            grad_q += tl.sum(grad_terms * k, 2)

    if not ADDITIVE:
        grad_q *= factor
    store_rows(GRAD_Q, row, H * D, offset, exists, grad_q, valid & (run >= num_parts))
    if PART_Q is not None:
        store_rows(PART_Q, run.to(tl.int64), H * D, offset, exists, grad_q, valid & (run < num_parts))
    if PART_ATT is not None:
        where = tl.program_id(0).to(tl.int64) * (H * D) + offset
        tl.store(PART_ATT + where, tl.sum(grad_att, 0) * factor, mask=exists)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SCALARS)
def column_kernel(
    Q, K, V, BIAS, GATE, EDGE_ROWS, ATT, SEED, GRAD_OUT, GRAD_PRODUCT, STATS, GRAD_K, GRAD_V,
    INDEX, EDGE, ROW, BEGIN, END, PART_K, PART_V,
    num_runs, num_parts, q_n, k_n, v_n, bias_e, bias_h, scale, scale_low, clamp, clamp_low,
    negative_slope, negative_slope_low, inverse_keep, inverse_keep_low, threshold,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, ADDITIVE: tl.constexpr, CLAMPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows are sources, INDEX holds targets."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_runs, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    offset, exists = channels(head, H, D, HB, DP)
    v_offset, v_exists = channels(head, H, DV, HB, DVP)
    factor = join(scale, scale_low, ACC)
    bound = join(clamp, clamp_low, ACC)
    slant = join(negative_slope, negative_slope_low, ACC)
    inverse = join(inverse_keep, inverse_keep_low, ACC)

    valid = row >= 0
    k = load_rows(K, row, k_n, offset, exists, valid, ACC)
    att = None
    if ADDITIVE:
        att = load_att(ATT, offset, exists, factor, HB, DP, ACC)
    else:
        k *= factor
    v = load_rows(V, row, v_n, v_offset, v_exists, valid, ACC)

    grad_k = tl.zeros([R, HB, DP], ACC)
    grad_v = tl.zeros([R, HB, DVP], ACC)
    next_at = begin[:, None] + tl.arange(0, U)[None, :]
    next_index = tl.load(INDEX + next_at, mask=next_at < end[:, None], other=0)
    for _ in range(0, tl.max(end - begin, 0), U):
        at = next_at
        there = at < end[:, None]
        target = next_index.to(tl.int64)
        # Asked for one step ahead: rows can be gathered as soon as the step begins.
        next_at = at + U
        next_index = tl.load(INDEX + next_at, mask=next_at < end[:, None], other=0)
        q = gather_rows(Q, target, q_n, offset, exists, there, ACC)
        grad_out = gather_rows(GRAD_OUT, target, H * DV, v_offset, v_exists, there, ACC)
        at_head = (target * H)[:, None, :] + head[None, :, None]
        head_mask = there[:, None, :] & (head < H)[None, :, None]
        lse, delta = load_stats(STATS, at_head, head_mask, ACC)
        edge = load_edges(EDGE, at, there)
        gate = None
        if GATE is not None:
            gate = gather_rows(GATE, edge, H * D, offset, exists, there, ACC)
        terms, total = terms_of(k, q, gate, att, slant, ADDITIVE)
        slope = tl.sum(v[:, :, None, :] * grad_out, 3)
        if EDGE_ROWS is not None:
            own = gather_rows(EDGE_ROWS, edge, H * D, offset, exists, there, ACC)
            terms += own * factor * q
            slope += tl.sum(own * grad_out, 3)
        score = sum_scores(terms, BIAS, bias_e, bias_h, edge, there, head, H)
        clamped = score
        if CLAMPED:
            clamped = bounded(score, bound)
        weight = tl.where(there[:, None, :], tl.exp(clamped - lse), 0.0)
        kept = weight
        if SEED is not None:
            drop = dropout_factor(SEED, edge, head, threshold, inverse)
            slope *= drop
            kept *= drop
        slope = weight * (slope - delta)
        if CLAMPED:
            slope = tl.where(tl.abs(score) <= bound, slope, 0.0)
        if ADDITIVE:
            grad_k += tl.sum(slope[:, :, :, None] * _steepness(total, att, slant), 2)
        else:
            grad_terms = slope[:, :, :, None]
            if GRAD_PRODUCT is not None:
                grad_terms += gather_rows(GRAD_PRODUCT, edge, H * D, offset, exists, there, ACC)
            if GATE is not None:
                q *= gate
            grad_k += tl.sum(grad_terms * q, 2)
        grad_v += tl.sum(kept[:, :, :, None] * grad_out, 2)

    if not ADDITIVE:
        grad_k *= factor
    whole = valid & (run >= num_parts)
    store_rows(GRAD_K, row, H * D, offset, exists, grad_k, whole)
    store_rows(GRAD_V, row, H * DV, v_offset, v_exists, grad_v, whole)
    if PART_K is not None:
        part = valid & (run < num_parts)
        store_rows(PART_K, run.to(tl.int64), H * D, offset, exists, grad_k, part)
        store_rows(PART_V, run.to(tl.int64), H * DV, v_offset, v_exists, grad_v, part)


@triton.jit
def _sum_parts(OUT, PARTS, row, first, last, W: tl.constexpr, B: tl.constexpr, BW: tl.constexpr, ACC: tl.constexpr):
    channel = tl.program_id(1) * BW + tl.arange(0, BW)
    total = tl.zeros([BW], ACC)
    for begin in range(first, last, B):
        part = (begin + tl.arange(0, B)).to(tl.int64)
        mask = (part < last)[:, None] & (channel < W)[None, :]
        total += tl.sum(tl.load(PARTS + (part * W)[:, None] + channel[None, :], mask=mask, other=0.0), 0)
    tl.store(OUT + row * W + channel, total.to(OUT.dtype.element_ty), mask=channel < W)


@triton.jit
def sum_kernel(
    X, PART_X, Y, PART_Y, HUB_ROW, PART_PTR, COUNT,
    WX: tl.constexpr, WY: tl.constexpr, B: tl.constexpr, BW: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows of hubs from their parts, for X ``[N, WX]`` and, where it is not None, Y ``[N, WY]``."""
    for hub in range(tl.program_id(0), tl.load(COUNT), tl.num_programs(0)):
        row = tl.load(HUB_ROW + hub).to(tl.int64)
        first = tl.load(PART_PTR + hub)
        last = tl.load(PART_PTR + hub + 1)
        _sum_parts(X, PART_X, row, first, last, WX, B, BW, ACC)
        if Y is not None:
            _sum_parts(Y, PART_Y, row, first, last, WY, B, BW, ACC)
