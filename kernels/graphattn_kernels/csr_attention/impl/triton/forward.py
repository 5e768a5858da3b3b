"""Forward kernel with online softmax, and the merge of the parts of hubs."""

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
    load_att,
    load_edges,
    load_rows,
    load_runs,
    store_edges,
    store_rows,
    sum_scores,
    terms_of,
)

__all__ = ["attend_kernel", "merge_kernel"]


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SCALARS)
def attend_kernel(
    Q, K, V, BIAS, GATE, EDGE_ROWS, ATT, SEED, OUT, LSE, PRODUCT,
    INDEX, EDGE, ROW, BEGIN, END, PART_MAX, PART_SUM, PART_OUT,
    num_runs, num_parts, q_n, k_n, v_n, bias_e, bias_h, scale, scale_low, clamp, clamp_low,
    negative_slope, negative_slope_low, inverse_keep, inverse_keep_low, threshold,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, ADDITIVE: tl.constexpr, CLAMPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows are targets. Whole rows give OUT and LSE; parts give their maximum, sum and unnormalised output."""
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
    top = tl.full([R, HB], float("-inf"), ACC)
    total = tl.zeros([R, HB], ACC)
    out = tl.zeros([R, HB, DVP], ACC)

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
        terms, _ = terms_of(q, k, gate, att, slant, ADDITIVE)
        if PRODUCT is not None:
            store_edges(PRODUCT, edge, H * D, offset, exists, terms, there)
        score = sum_scores(terms, BIAS, bias_e, bias_h, edge, there, head, H)
        if CLAMPED:
            score = bounded(score, bound)
        score = tl.where(there[:, None, :], score, float("-inf"))

        new_top = tl.maximum(top, tl.max(score, 2))
        # While every score is -inf, any finite number keeps the exponentials at 0.
        finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp(top - finite_top)
        weight = tl.exp(score - finite_top[:, :, None])
        total = total * shrink + tl.sum(weight, 2)
        if SEED is not None:
            weight *= dropout_factor(SEED, edge, head, threshold, inverse)
        out = out * shrink[:, :, None] + tl.sum(weight[:, :, :, None] * v, 2)
        top = new_top

    whole = valid & (run >= num_parts)
    divisor = tl.where(total == 0.0, 1.0, total)
    store_rows(OUT, row, H * DV, v_offset, v_exists, out / divisor[:, :, None], whole)
    lse = tl.where(total == 0.0, float("-inf"), top + tl.log(divisor))
    mask = whole[:, None] & (head < H)[None, :]
    tl.store(LSE + (row * H)[:, None] + head[None, :], lse, mask=mask)
    if PART_OUT is not None:
        part = valid & (run < num_parts)
        slot = run.to(tl.int64)
        mask = part[:, None] & (head < H)[None, :]
        tl.store(PART_MAX + (slot * H)[:, None] + head[None, :], top, mask=mask)
        tl.store(PART_SUM + (slot * H)[:, None] + head[None, :], total, mask=mask)
        store_rows(PART_OUT, slot, H * DV, v_offset, v_exists, out, part)


@triton.jit
def merge_kernel(
    OUT, LSE, PART_MAX, PART_SUM, PART_OUT, HUB_ROW, PART_PTR, COUNT,
    H: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One head of a hub at a time, B of its parts at once."""
    head = tl.program_id(1)
    channel = tl.arange(0, DVP)
    exists = channel < DV
    for hub in range(tl.program_id(0), tl.load(COUNT), tl.num_programs(0)):
        row = tl.load(HUB_ROW + hub).to(tl.int64)
        first = tl.load(PART_PTR + hub)
        last = tl.load(PART_PTR + hub + 1)
        top = tl.full([1], float("-inf"), ACC)
        total = tl.zeros([1], ACC)
        out = tl.zeros([DVP], ACC)
        for begin in range(first, last, B):
            part = (begin + tl.arange(0, B)).to(tl.int64)
            there = part < last
            part_max = tl.load(PART_MAX + part * H + head, mask=there, other=float("-inf"))
            part_sum = tl.load(PART_SUM + part * H + head, mask=there, other=0.0)
            part_out = tl.load(
                PART_OUT + ((part * H + head) * DV)[:, None] + channel[None, :],
                mask=there[:, None] & exists[None, :],
                other=0.0,
            )
            new_top = tl.maximum(top, tl.max(part_max, 0))
            finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
            shrink = tl.exp(top - finite_top)
            factor = tl.exp(part_max - finite_top)
            total = total * shrink + tl.sum(part_sum * factor, 0)
            out = out * shrink + tl.sum(part_out * factor[:, None], 0)
            top = new_top
        divisor = tl.where(total == 0.0, 1.0, total)
        lse = tl.where(total == 0.0, float("-inf"), top + tl.log(divisor))
        tl.store(OUT + (row * H + head) * DV + channel, (out / divisor).to(OUT.dtype.element_ty), mask=exists)
        tl.store(LSE + row * H + head + tl.arange(0, 1), lse)
