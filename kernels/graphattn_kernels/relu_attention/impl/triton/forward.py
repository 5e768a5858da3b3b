"""Forward: unnormalised output and sums of squares in one pass; a second, short one divides by the norm."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

from graphattn_kernels._members_triton import locate, rows_of, slots_of, total
from graphattn_kernels.block_attention.impl.triton.primitives import dot, load_rows, origin, store_rows

__all__ = ["RUNTIME", "attend_kernel", "divide_kernel", "rectified"]

# Whole numbers that Triton is not to compile for; of strides, kernels are told what they can use (ALIGN).
RUNTIME = "slots members targets sources heads along_slots chunk q_b q_t q_h k_b k_s k_h v_b v_s v_h".split()


@triton.jit
def rectified(score):
    """max(score, 0), NaN kept."""
    return tl.maximum(score, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _step(
    q, out, square, K, V, k_base, v_base, begin, start, end, first, k_s, v_s,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    EDGE: tl.constexpr, CAUSAL: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """N sources. Rows past the end are 0, so their scores are, and nothing else has to be masked."""
    local = tl.arange(0, N)
    there = start + local < end
    row = (begin + start).to(tl.int64)
    k = load_rows(K, k_base, row, local, k_s, there, D, DP, ALIGN, not EDGE)
    v = load_rows(V, v_base, row, local, v_s, there, DV, DVP, ALIGN, not EDGE)
    weight = rectified(dot(q, tl.trans(k), None, PRECISION))
    if EDGE and CAUSAL:
        weight = tl.where((first + tl.arange(0, q.shape[0]))[:, None] >= (start + local)[None, :], weight, 0.0)
    # Of 8 neighbouring columns, a thread of a tensor core holds 2, and the same 2 of the next 8: a sum over the eights
    # stays in its registers, a sum over columns would cross threads in every step.
    square += tl.sum(tl.reshape(weight * weight, (q.shape[0], N // 8, 8)), 1)
    out = dot(weight.to(v.dtype), v, out, PRECISION)
    return out, square


@triton.jit(do_not_specialize=RUNTIME)
def attend_kernel(
    Q, K, V, OUT, SQUARE, TARGET_LENGTHS, SOURCE_LENGTHS, TARGET_PTR, SOURCE_PTR,
    slots, members, targets, sources, heads, q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, factor,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has M targets of a member and head. OUT ``[B, T, H, D_v]`` is unnormalised, SQUARE ``[H, slots]``."""
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
    row = (begin + first).to(tl.int64)
    local = tl.arange(0, M)
    there = first + local < length
    q = load_rows(Q, origin(batch, q_b, head, q_h, ALIGN), row, local, q_t, there, D, DP, ALIGN, False)
    q = (q.to(tl.float32) * factor).to(Q.dtype.element_ty)  # a power of 2

    k_base = origin(batch, k_b, head, k_h, ALIGN)
    v_base = origin(batch, v_b, head, v_h, ALIGN)
    out = tl.zeros([M, DVP], tl.float32)
    square = tl.zeros([M, 8], tl.float32)
    whole = end
    if CAUSAL:
        end = tl.minimum(end, first + M)
        whole = tl.minimum(end, first)
    end = tl.where(first < length, end, 0)
    whole = tl.minimum(whole, end) // N * N
    for start in range(0, whole, N):
        out, square = _step(
            q, out, square, K, V, k_base, v_base, source_begin, start, end, first, k_s, v_s,
            D, DV, DP, DVP, M, N, False, CAUSAL, ALIGN, PRECISION,
        )  # fmt: skip
    for start in range(whole, end, N):
        out, square = _step(
            q, out, square, K, V, k_base, v_base, source_begin, start, end, first, k_s, v_s,
            D, DV, DP, DVP, M, N, True, CAUSAL, ALIGN, PRECISION,
        )  # fmt: skip
    tl.store(SQUARE + head * slots + slot, tl.sum(tl.sum(square, 1), 0))
    base = ((batch * targets + row) * heads + head) * DV
    store_rows(OUT, base, local, heads * DV, first + local < limit, out, DV, DVP)


@triton.jit(do_not_specialize=RUNTIME)
def divide_kernel(
    OUT, UNNORMALISED, SQUARE, NORM, TARGET_PTR, slots, members, targets, heads, factor, eps,
    DV: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """OUT = UNNORMALISED over the norm, for the rows of :func:`attend_kernel`; NORM ``[members, H]``."""
    pid = tl.program_id(0)
    slot = pid % slots
    head = (pid // slots).to(tl.int64)
    member, begin, _, first, limit = locate(TARGET_PTR, None, slot, members, targets, M)
    one, count = slots_of(TARGET_PTR, member, targets, M)
    norm = factor * tl.sqrt_rn(total(SQUARE + head * slots, one, count))
    if first == 0:
        tl.store(NORM + member.to(tl.int64) * heads + head, norm)
    batch = member.to(tl.int64) if TARGET_PTR is None else tl.full([], 0, tl.int64)
    local = tl.arange(0, M)
    there = first + local < limit
    channel = tl.arange(0, DVP)
    at = ((batch * targets + begin + first) * heads + head) * DV + (local * (heads * DV))[:, None] + channel[None, :]
    mask = there[:, None] & (channel < DV)[None, :]
    out = tl.load(UNNORMALISED + at, mask=mask, other=0.0) * (factor / (norm + eps))
    tl.store(OUT + at, out.to(OUT.dtype.element_ty), mask=mask)
