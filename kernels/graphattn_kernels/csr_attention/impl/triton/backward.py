"""Backward kernels: a pass over rows for dq, dbias and dgate, a pass over columns for dk and dv, and sums over the
parts of hubs. Weights are computed again from the log-sum-exp; nothing is added atomically."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

from graphattn_kernels.csr_attention.impl.triton.primitives import (
    bounded,
    channels,
    dropout_factor,
    join,
    load_runs,
    scores,
    store_rows,
)

__all__ = ["column_kernel", "row_kernel", "sum_kernel"]

_RUNTIME = ["num_runs", "num_parts", "threshold"]


@triton.jit(do_not_specialize=_RUNTIME)
def row_kernel(
    Q, K, V, BIAS, GATE, SEED, OUT, LSE, GRAD_OUT, GRAD_LSE, STATS, GRAD_Q, GRAD_BIAS, GRAD_GATE,
    INDEX, EDGE, ROW, BEGIN, END, PART_Q,
    num_runs, num_parts, q_n, k_n, v_n, bias_e, bias_h,
    scale, scale_low, clamp, clamp_low, inverse_keep, inverse_keep_low, threshold,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, CLAMPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows are targets. STATS ``[T, H, 2]`` gets lse and delta = out . grad_out - grad_lse for the column pass."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_runs, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    offset, exists = channels(head, H, D, HB, DP)
    v_offset, v_exists = channels(head, H, DV, HB, DVP)
    factor = join(scale, scale_low, ACC)
    bound = join(clamp, clamp_low, ACC)
    inverse = join(inverse_keep, inverse_keep_low, ACC)

    valid = row >= 0
    mask = valid[:, None, None] & exists[None, :, :]
    q = tl.load(Q + (row * q_n)[:, None, None] + offset[None, :, :], mask=mask, other=0.0).to(ACC) * factor
    at_out = (row * (H * DV))[:, None, None] + v_offset[None, :, :]
    mask = valid[:, None, None] & v_exists[None, :, :]
    grad_out = tl.load(GRAD_OUT + at_out, mask=mask, other=0.0).to(ACC)
    out = tl.load(OUT + at_out, mask=mask, other=0.0).to(ACC)
    at_head = (row * H)[:, None] + head[None, :]
    mask = valid[:, None] & (head < H)[None, :]
    lse = tl.load(LSE + at_head, mask=mask, other=0.0)
    # A target all of whose scores are -inf has no weights: any finite number in place of its lse keeps exp at 0.
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    delta = tl.sum(grad_out * out, 2) - tl.load(GRAD_LSE + at_head, mask=mask, other=0.0)
    # The parts of a hub all store the same numbers.
    tl.store(STATS + at_head * 2, lse, mask=mask)
    tl.store(STATS + at_head * 2 + 1, delta, mask=mask)

    grad_q = tl.zeros([R, HB, DP], ACC)
    for step in range(0, tl.max(end - begin, 0), U):
        at = begin[:, None] + (step + tl.arange(0, U))[None, :]
        there = at < end[:, None]
        source = tl.load(INDEX + at, mask=there, other=0).to(tl.int64)
        edge_mask = there[:, None, :, None]
        qk_mask = edge_mask & exists[None, :, None, :]
        k = tl.load(
            K + (source * k_n)[:, None, :, None] + offset[None, :, None, :],
            mask=qk_mask,
            other=0.0,
        ).to(ACC)
        v = tl.load(
            V + (source * v_n)[:, None, :, None] + v_offset[None, :, None, :],
            mask=edge_mask & v_exists[None, :, None, :],
            other=0.0,
        ).to(ACC)
        edge = at.to(tl.int64)
        if EDGE is not None:
            edge = tl.load(EDGE + at, mask=there, other=0).to(tl.int64)
        product = q[:, :, None, :] * k
        if GATE is not None:
            at_gate = (edge * (H * D))[:, None, :, None] + offset[None, :, None, :]
            gate = tl.load(GATE + at_gate, mask=qk_mask, other=0.0).to(ACC)
            score = scores(product * gate, BIAS, bias_e, bias_h, edge, there, head, H)
            k *= gate
        else:
            score = scores(product, BIAS, bias_e, bias_h, edge, there, head, H)
        clamped = score
        if CLAMPED:
            clamped = bounded(score, bound)
        weight = tl.where(there[:, None, :], tl.exp(clamped - lse[:, :, None]), 0.0)
        slope = tl.sum(grad_out[:, :, None, :] * v, 3)
        if SEED is not None:
            slope *= dropout_factor(SEED, edge, head, threshold, inverse)
        slope = weight * (slope - delta[:, :, None])
        if CLAMPED:
            slope = tl.where(tl.abs(score) <= bound, slope, 0.0)
        if GRAD_BIAS is not None:
            tl.store(
                GRAD_BIAS + (edge * H)[:, None, :] + head[None, :, None],
                slope.to(GRAD_BIAS.dtype.element_ty),
                mask=there[:, None, :] & (head < H)[None, :, None],
            )
        if GATE is not None:
            grad_gate = slope[:, :, :, None] * product
            tl.store(GRAD_GATE + at_gate, grad_gate.to(GRAD_GATE.dtype.element_ty), mask=qk_mask)
        grad_q += tl.sum(slope[:, :, :, None] * k, 2)

    grad_q *= factor
    store_rows(GRAD_Q, row, H * D, offset, exists, grad_q, valid & (run >= num_parts))
    if PART_Q is not None:
        store_rows(PART_Q, run.to(tl.int64), H * D, offset, exists, grad_q, valid & (run < num_parts))


@triton.jit(do_not_specialize=_RUNTIME)
def column_kernel(
    Q, K, V, BIAS, GATE, SEED, GRAD_OUT, STATS, GRAD_K, GRAD_V, INDEX, EDGE, ROW, BEGIN, END, PART_K, PART_V,
    num_runs, num_parts, q_n, k_n, v_n, bias_e, bias_h,
    scale, scale_low, clamp, clamp_low, inverse_keep, inverse_keep_low, threshold,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, CLAMPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows are sources, INDEX holds targets."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_runs, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    offset, exists = channels(head, H, D, HB, DP)
    v_offset, v_exists = channels(head, H, DV, HB, DVP)
    factor = join(scale, scale_low, ACC)
    bound = join(clamp, clamp_low, ACC)
    inverse = join(inverse_keep, inverse_keep_low, ACC)

    valid = row >= 0
    mask = valid[:, None, None] & exists[None, :, :]
    k = tl.load(K + (row * k_n)[:, None, None] + offset[None, :, :], mask=mask, other=0.0).to(ACC) * factor
    mask = valid[:, None, None] & v_exists[None, :, :]
    v = tl.load(V + (row * v_n)[:, None, None] + v_offset[None, :, :], mask=mask, other=0.0).to(ACC)

    grad_k = tl.zeros([R, HB, DP], ACC)
    grad_v = tl.zeros([R, HB, DVP], ACC)
    for step in range(0, tl.max(end - begin, 0), U):
        at = begin[:, None] + (step + tl.arange(0, U))[None, :]
        there = at < end[:, None]
        target = tl.load(INDEX + at, mask=there, other=0).to(tl.int64)
        edge_mask = there[:, None, :, None]
        qk_mask = edge_mask & exists[None, :, None, :]
        q = tl.load(
            Q + (target * q_n)[:, None, :, None] + offset[None, :, None, :],
            mask=qk_mask,
            other=0.0,
        ).to(ACC)
        grad_out = tl.load(
            GRAD_OUT + (target * (H * DV))[:, None, :, None] + v_offset[None, :, None, :],
            mask=edge_mask & v_exists[None, :, None, :],
            other=0.0,
        ).to(ACC)
        at_head = (target * H)[:, None, :] + head[None, :, None]
        head_mask = there[:, None, :] & (head < H)[None, :, None]
        lse = tl.load(STATS + at_head * 2, mask=head_mask, other=0.0)
        delta = tl.load(STATS + at_head * 2 + 1, mask=head_mask, other=0.0)
        edge = at.to(tl.int64)
        if EDGE is not None:
            edge = tl.load(EDGE + at, mask=there, other=0).to(tl.int64)
        if GATE is not None:
            q *= tl.load(
                GATE + (edge * (H * D))[:, None, :, None] + offset[None, :, None, :],
                mask=qk_mask,
                other=0.0,
            ).to(ACC)
        score = scores(k[:, :, None, :] * q, BIAS, bias_e, bias_h, edge, there, head, H)
        clamped = score
        if CLAMPED:
            clamped = bounded(score, bound)
        weight = tl.where(there[:, None, :], tl.exp(clamped - lse), 0.0)
        slope = tl.sum(v[:, :, None, :] * grad_out, 3)
        kept = weight
        if SEED is not None:
            drop = dropout_factor(SEED, edge, head, threshold, inverse)
            slope *= drop
            kept *= drop
        slope = weight * (slope - delta)
        if CLAMPED:
            slope = tl.where(tl.abs(score) <= bound, slope, 0.0)
        grad_k += tl.sum(slope[:, :, :, None] * q, 2)
        grad_v += tl.sum(kept[:, :, :, None] * grad_out, 2)

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
