"""Backward: a pass over rows of targets for dq, a pass over rows of sources for dk and dv.

With n the norm, g the gradient of y and m that of n, the gradient of a weight is

    dA = (g v - c A) / (n + eps)        c = (sum of g y - m (n + eps)) / n,  0 where n is

where A > 0. The kernels work with scores that lack the factor of :class:`Scale`, and multiply by 1 / (n + eps) last:
half types would lose what is small.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

from graphattn_kernels._members_triton import locate, rows_of, slots_of, total
from graphattn_kernels.block_attention.impl.triton.primitives import dot, load_rows, origin, store_rows
from graphattn_kernels.relu_attention.impl.triton.forward import RUNTIME, rectified

__all__ = ["along_kernel", "column_kernel", "row_kernel"]


@triton.jit(do_not_specialize=RUNTIME)
def along_kernel(
    OUT, GRAD_OUT, ALONG, TARGET_LENGTHS, TARGET_PTR, slots, members, targets, heads,
    DV: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """ALONG ``[H, slots]``: the sum of g y over M targets; both are ``[B, T, H, D_v]``."""
    pid = tl.program_id(0)
    slot = pid % slots
    head = (pid // slots).to(tl.int64)
    member, begin, length, first, _ = locate(TARGET_PTR, TARGET_LENGTHS, slot, members, targets, M)
    batch = member.to(tl.int64) if TARGET_PTR is None else tl.full([], 0, tl.int64)
    local = tl.arange(0, M)
    channel = tl.arange(0, DVP)
    at = ((batch * targets + begin + first) * heads + head) * DV + (local * (heads * DV))[:, None] + channel[None, :]
    mask = (first + local < length)[:, None] & (channel < DV)[None, :]
    out = tl.load(OUT + at, mask=mask, other=0.0).to(tl.float32)
    grad_out = tl.load(GRAD_OUT + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(ALONG + head * slots + slot, tl.sum(tl.sum(out * grad_out, 1), 0))


@triton.jit
def _slopes(ALONG, NORM, GRAD_NORM, TARGET_PTR, member, head, slots, targets, heads, chunk, eps):
    """1 / (n + eps), and c, of a member and head."""
    first, count = slots_of(TARGET_PTR, member, targets, chunk)
    along = total(ALONG + head * slots, first, count)
    at = member.to(tl.int64) * heads + head
    norm = tl.load(NORM + at)
    if GRAD_NORM is not None:
        along -= tl.load(GRAD_NORM + at) * (norm + eps)
    return 1.0 / (norm + eps), along / tl.where(norm == 0.0, 1.0, norm)


@triton.jit
def _row_step(
    q, grad_out, grad_q, slope, K, V, k_base, v_base, begin, start, end, first, k_s, v_s,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, N: tl.constexpr,
    EDGE: tl.constexpr, CAUSAL: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    local = tl.arange(0, N)
    there = start + local < end
    row = (begin + start).to(tl.int64)
    k = load_rows(K, k_base, row, local, k_s, there, D, DP, ALIGN, not EDGE)
    v = load_rows(V, v_base, row, local, v_s, there, DV, DVP, ALIGN, not EDGE)
    score = dot(q, tl.trans(k), None, PRECISION)
    to_score = dot(grad_out, tl.trans(v), None, PRECISION) - slope * score
    reads = score <= 0.0  # the complement: NaN is kept
    if EDGE and CAUSAL:
        reads = reads | ((first + tl.arange(0, q.shape[0]))[:, None] < (start + local)[None, :])
    to_score = tl.where(reads, 0.0, to_score)
    return dot(to_score.to(k.dtype), k, grad_q, PRECISION)


@triton.jit(do_not_specialize=RUNTIME)
def row_kernel(
    Q, K, V, GRAD_OUT, ALONG, NORM, GRAD_NORM, GRAD_Q, TARGET_LENGTHS, SOURCE_LENGTHS, TARGET_PTR, SOURCE_PTR,
    slots, members, targets, sources, heads, q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h,
    along_slots, chunk, factor, rest, eps,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has M targets of a member and head."""
    pid = tl.program_id(0)
    slot = pid % slots
    head = (pid // slots).to(tl.int64)
    if CAUSAL:  # the longest rows first
        slot = slots - 1 - slot
    member, begin, length, first, limit = locate(TARGET_PTR, TARGET_LENGTHS, slot, members, targets, M)
    if first >= limit:
        return
    batch = member.to(tl.int64) if TARGET_PTR is None else tl.full([], 0, tl.int64)
    source_begin, end = rows_of(SOURCE_PTR, SOURCE_LENGTHS, member, sources)
    shrink, slope = _slopes(ALONG, NORM, GRAD_NORM, TARGET_PTR, member, head, along_slots, targets, heads, chunk, eps)
    slope *= rest
    row = (begin + first).to(tl.int64)
    local = tl.arange(0, M)
    there = first + local < length
    q = load_rows(Q, origin(batch, q_b, head, q_h, ALIGN), row, local, q_t, there, D, DP, ALIGN, False)
    q = (q.to(tl.float32) * factor).to(Q.dtype.element_ty)  # a power of 2
    grad_base = origin(batch * targets, heads * DV, head, DV, ALIGN)
    grad_out = load_rows(GRAD_OUT, grad_base, row, local, heads * DV, there, DV, DVP, ALIGN, False)

    k_base = origin(batch, k_b, head, k_h, ALIGN)
    v_base = origin(batch, v_b, head, v_h, ALIGN)
    grad_q = tl.zeros([M, DP], tl.float32)
    whole = end
    if CAUSAL:
        end = tl.minimum(end, first + M)
        whole = tl.minimum(end, first)
    end = tl.where(first < length, end, 0)
    whole = tl.minimum(whole, end) // N * N
    for start in range(0, whole, N):
        grad_q = _row_step(
            q, grad_out, grad_q, slope, K, V, k_base, v_base, source_begin, start, end, first, k_s, v_s,
            D, DV, DP, DVP, N, False, CAUSAL, ALIGN, PRECISION,
        )  # fmt: skip
    for start in range(whole, end, N):
        grad_q = _row_step(
            q, grad_out, grad_q, slope, K, V, k_base, v_base, source_begin, start, end, first, k_s, v_s,
            D, DV, DP, DVP, N, True, CAUSAL, ALIGN, PRECISION,
        )  # fmt: skip
    base = ((batch * targets + row) * heads + head) * D
    store_rows(GRAD_Q, base, local, heads * D, first + local < limit, grad_q * (factor * rest * shrink), D, DP)


@triton.jit
def _column_step(
    k, v, grad_k, grad_v, slope, Q, GRAD_OUT, q_base, grad_base, begin, start, end, first, q_t, grad_t,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, N: tl.constexpr,
    EDGE: tl.constexpr, CAUSAL: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    local = tl.arange(0, N)
    there = start + local < end
    row = (begin + start).to(tl.int64)
    q = load_rows(Q, q_base, row, local, q_t, there, D, DP, ALIGN, not EDGE)
    grad_out = load_rows(GRAD_OUT, grad_base, row, local, grad_t, there, DV, DVP, ALIGN, not EDGE)
    score = dot(k, tl.trans(q), None, PRECISION)
    if EDGE and CAUSAL:
        later = (first + tl.arange(0, k.shape[0]))[:, None] > (start + local)[None, :]
        score = tl.where(later, 0.0, score)
    grad_v = dot(rectified(score).to(grad_out.dtype), grad_out, grad_v, PRECISION)
    to_score = dot(v, tl.trans(grad_out), None, PRECISION) - slope * score
    to_score = tl.where(score <= 0.0, 0.0, to_score)
    grad_k = dot(to_score.to(q.dtype), q, grad_k, PRECISION)
    return grad_k, grad_v


@triton.jit(do_not_specialize=RUNTIME)
def column_kernel(
    Q, K, V, GRAD_OUT, ALONG, NORM, GRAD_NORM, GRAD_K, GRAD_V,
    TARGET_LENGTHS, SOURCE_LENGTHS, TARGET_PTR, SOURCE_PTR,
    slots, members, targets, sources, heads, q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h,
    along_slots, chunk, factor, rest, eps,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has M sources of a member and head; scores stand transposed, ``[source, target]``."""
    pid = tl.program_id(0)
    slot = pid % slots  # causal: the first sources are read most
    head = (pid // slots).to(tl.int64)
    member, begin, length, first, limit = locate(SOURCE_PTR, SOURCE_LENGTHS, slot, members, sources, M)
    if first >= limit:
        return
    batch = member.to(tl.int64) if TARGET_PTR is None else tl.full([], 0, tl.int64)
    target_begin, end = rows_of(TARGET_PTR, TARGET_LENGTHS, member, targets)
    shrink, slope = _slopes(ALONG, NORM, GRAD_NORM, TARGET_PTR, member, head, along_slots, targets, heads, chunk, eps)
    slope *= rest
    row = (begin + first).to(tl.int64)
    local = tl.arange(0, M)
    there = first + local < length
    k = load_rows(K, origin(batch, k_b, head, k_h, ALIGN), row, local, k_s, there, D, DP, ALIGN, False)
    k = (k.to(tl.float32) * factor).to(K.dtype.element_ty)
    v = load_rows(V, origin(batch, v_b, head, v_h, ALIGN), row, local, v_s, there, DV, DVP, ALIGN, False)

    q_base = origin(batch, q_b, head, q_h, ALIGN)
    grad_base = origin(batch * targets, heads * DV, head, DV, ALIGN)
    grad_k = tl.zeros([M, DP], tl.float32)
    grad_v = tl.zeros([M, DVP], tl.float32)
    end = tl.where(first < length, end, 0)
    begin_edge = 0
    begin_whole = 0
    if CAUSAL:  # targets from `first` on read some of the sources, from `first + M - 1` on all of them
        begin_edge = first // N * N
        begin_whole = (first + M + N - 2) // N * N
    end_whole = tl.maximum(end // N * N, begin_whole)
    if CAUSAL:
        for start in range(begin_edge, tl.minimum(begin_whole, end), N):
            grad_k, grad_v = _column_step(
                k, v, grad_k, grad_v, slope, Q, GRAD_OUT, q_base, grad_base, target_begin, start, end, first, q_t,
                heads * DV, D, DV, DP, DVP, N, True, CAUSAL, ALIGN, PRECISION,
            )  # fmt: skip
    for start in range(begin_whole, end_whole, N):
        grad_k, grad_v = _column_step(
            k, v, grad_k, grad_v, slope, Q, GRAD_OUT, q_base, grad_base, target_begin, start, end, first, q_t,
            heads * DV, D, DV, DP, DVP, N, False, CAUSAL, ALIGN, PRECISION,
        )  # fmt: skip
    for start in range(end_whole, end, N):
        grad_k, grad_v = _column_step(
            k, v, grad_k, grad_v, slope, Q, GRAD_OUT, q_base, grad_base, target_begin, start, end, first, q_t,
            heads * DV, D, DV, DP, DVP, N, True, CAUSAL, ALIGN, PRECISION,
        )  # fmt: skip
    at = (batch * sources + row) * heads + head
    written = first + local < limit
    store_rows(GRAD_K, at * D, local, heads * D, written, grad_k * (factor * rest * shrink), D, DP)
    store_rows(GRAD_V, at * DV, local, heads * DV, written, grad_v * (rest * shrink), DV, DVP)
