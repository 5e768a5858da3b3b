"""Kernels that read each input once.

A program has a chunk of rows of a member, and HB heads, R rows at a time. What it sums stays apart for each of the R
rows until its end, so no step has a sum across threads but the one over channels. The sums of programs are added in
order by every program of the next pass, or by the program that ends last, whichever that is: the bits are the same.

SUMS ``[members, H, 1 + D + 1 + D_v]`` holds the sums of lengths, of queries by length, of weights, of values by weight.
WORK holds the sums of each program: ``[slots, H, D + 1]`` of queries by length and of lengths, then, over sources,
``[slots, H, D_v + 1]`` of values by weight and of weights, each row filled up to whole 16 bytes (:func:`row_width`).
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

from graphattn_kernels._members_triton import locate, slots_of

__all__ = ["grad_query_kernel", "grad_source_kernel", "mix_kernel", "query_kernel", "row_width"]

# Whole numbers that Triton is not to compile for; of strides, kernels are told what they can use (ALIGN).
_RUNTIME = (
    "slots members size chunk other_slots other_size other_chunk heads q_b q_t q_h k_b k_s k_h v_b v_s v_h"
).split()


@triton.jit
def _heads(group, heads, HB: tl.constexpr):
    """The heads of a program, and which of them there are."""
    head = group * HB + tl.arange(0, HB)
    return head.to(tl.int64), head < heads


@triton.jit
def _at(X, batch, stride_b, row, stride_row, head, stride_h, ROWS: tl.constexpr, DP: tl.constexpr, ALIGN: tl.constexpr):
    """Addresses ``[R, HB, DP]`` of the rows from ``row`` on."""
    # Of a ragged batch, `batch` is a constant 0: with the sum, a hint on the sum would go.
    X += tl.multiple_of(batch * stride_b, ALIGN) + tl.multiple_of(row.to(tl.int64) * stride_row, ALIGN)
    local = tl.multiple_of(tl.arange(0, ROWS) * stride_row, ALIGN)
    at_head = tl.multiple_of(head * stride_h, ALIGN)
    return X + (local[:, None, None] + at_head[None, :, None] + tl.arange(0, DP)[None, None, :])


@triton.jit
def _mask(start, end, is_head, ROWS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    there = (start + tl.arange(0, ROWS) < end)[:, None, None] & is_head[None, :, None]
    return there & (tl.arange(0, DP) < D)[None, None, :]


@triton.constexpr_function
def row_width(width: int) -> int:
    """Numbers of a row of WORK: channels, one more, and what is missing to whole 16 bytes."""
    return (width + 4) // 4 * 4


@triton.jit
def _store(
    PARTIAL, slot, heads, head, is_head, value, number, W: tl.constexpr, D: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    """A row of ``[slots, H, W]``: ``value [HB, D]`` and, where there is one, ``number [HB]``."""
    channel = tl.arange(0, DP)
    row = PARTIAL + (slot.to(tl.int64) * heads + head) * W
    tl.store(row[:, None] + channel[None, :], value, mask=is_head[:, None] & (channel < D)[None, :])
    if number is not None:
        tl.store(row + D, number, mask=is_head)


@triton.jit
def _joined(
    PARTIAL, first, count, heads, head, is_head, W: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """``[HB, DP]``: the sum of the channels over a member's slots, B at a time."""
    channel = tl.arange(0, DP)
    mask = is_head[None, :, None] & (channel < D)[None, None, :]
    sums = tl.zeros([B, head.shape[0], DP], tl.float32)
    for some in range(0, count, B):
        slot = some + tl.arange(0, B)
        at = ((first + slot).to(tl.int64)[:, None] * heads + head[None, :]) * W
        here = mask & (slot < count)[:, None, None]
        sums += tl.load(PARTIAL + at[:, :, None] + channel[None, None, :], mask=here, other=0.0)
    return tl.sum(sums, 0)


@triton.jit
def _joined_numbers(PARTIAL, first, count, heads, head, is_head, W: tl.constexpr, D: tl.constexpr, B: tl.constexpr):
    """``[HB]``: the same for the number behind the channels."""
    sums = tl.zeros([B, head.shape[0]], tl.float32)
    for some in range(0, count, B):
        slot = some + tl.arange(0, B)
        at = ((first + slot).to(tl.int64)[:, None] * heads + head[None, :]) * W + D
        sums += tl.load(PARTIAL + at, mask=is_head[None, :] & (slot < count)[:, None], other=0.0)
    return tl.sum(sums, 0)


@triton.jit
def _row(X, at, is_head, offset, D: tl.constexpr, DP: tl.constexpr):
    """``[HB, DP]`` of rows that begin at ``at``."""
    channel = tl.arange(0, DP)
    mask = is_head[:, None] & (channel < D)[None, :]
    return tl.load(X + at[:, None] + (offset + channel)[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _lengths(x):
    """Euclidean lengths ``[R, HB]``."""
    return tl.sqrt_rn(tl.sum(x * x, 2))


@triton.jit(do_not_specialize=_RUNTIME)
def query_kernel(
    Q, WORK, SUMS, LENGTHS, PTR, slots, members, size, chunk, heads, q_b, q_t, q_h,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, HB: tl.constexpr, R: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The first part of WORK; and 0 where the next pass counts which of a member's programs ended."""
    groups = (heads + HB - 1) // HB
    pid = tl.program_id(0)
    slot = pid // groups
    head, is_head = _heads(pid % groups, heads, HB)
    member, begin, length, first, _ = locate(PTR, LENGTHS, slot, members, size, chunk)
    batch = member.to(tl.int64) if PTR is None else tl.full([], 0, tl.int64)
    lengths = tl.zeros([R, HB], tl.float32)
    query = tl.zeros([R, HB, DP], tl.float32)
    end = tl.minimum(length, first + chunk)
    for start in range(first, end, R):
        at = _at(Q, batch, q_b, begin + start, q_t, head, q_h, R, DP, ALIGN)
        x = tl.load(at, mask=_mask(start, end, is_head, R, D, DP), other=0.0).to(tl.float32)
        of_row = _lengths(x)
        lengths += of_row
        query += of_row[:, :, None] * x
    _store(WORK, slot, heads, head, is_head, tl.sum(query, 0), tl.sum(lengths, 0), row_width(D), D, DP)
    if first == 0:
        counter = SUMS + (member.to(tl.int64) * heads + head) * (D + DV + 2) + D + 1
        tl.store(counter, tl.zeros([HB], tl.float32), mask=is_head)


@triton.jit(do_not_specialize=_RUNTIME)
def mix_kernel(
    K, V, WORK, SUMS, OUT, LENGTHS, PTR, OTHER_PTR,
    slots, members, size, chunk, other_slots, other_size, other_chunk, heads, k_b, k_s, k_h, v_b, v_s, v_h,
    eps_q, eps_k, factor,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, HB: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The second part of WORK; SUMS, and OUT ``[members, H, D_v]``."""
    groups = (heads + HB - 1) // HB
    pid = tl.program_id(0)
    slot = pid // groups
    head, is_head = _heads(pid % groups, heads, HB)
    member, begin, length, first, _ = locate(PTR, LENGTHS, slot, members, size, chunk)
    if (first >= length) & (first > 0):
        return
    batch = member.to(tl.int64) if PTR is None else tl.full([], 0, tl.int64)
    one, count = slots_of(OTHER_PTR, member, other_size, other_chunk)
    total = _joined_numbers(WORK, one, count, heads, head, is_head, row_width(D), D, B)
    query = _joined(WORK, one, count, heads, head, is_head, row_width(D), D, DP, B)
    at_sums = SUMS + (member.to(tl.int64) * heads + head) * (D + DV + 2)
    if first == 0:
        channel = tl.arange(0, DP)
        tl.store(at_sums, total, mask=is_head)
        tl.store(at_sums[:, None] + 1 + channel[None, :], query, mask=is_head[:, None] & (channel < D)[None, :])
    mean = query / (total + eps_q)[:, None]

    weights = tl.zeros([R, HB], tl.float32)
    value = tl.zeros([R, HB, DVP], tl.float32)
    end = tl.minimum(length, first + chunk)
    for start in range(first, end, R):
        at_k = _at(K, batch, k_b, begin + start, k_s, head, k_h, R, DP, ALIGN)
        at_v = _at(V, batch, v_b, begin + start, v_s, head, v_h, R, DVP, ALIGN)
        k = tl.load(at_k, mask=_mask(start, end, is_head, R, D, DP), other=0.0).to(tl.float32)
        v = tl.load(at_v, mask=_mask(start, end, is_head, R, DV, DVP), other=0.0).to(tl.float32)
        weight = tl.maximum(tl.sum(k * mean[None, :, :], 2), 0.0, propagate_nan=tl.PropagateNan.ALL)
        weights += weight
        value += weight[:, :, None] * v
    WORK += other_slots.to(tl.int64) * heads * row_width(D)
    _store(WORK, slot, heads, head, is_head, tl.sum(value, 0), tl.sum(weights, 0), row_width(DV), DV, DVP)

    # Whoever ends last adds what all have stored. The count stands where the sum of weights goes. The atomic addition
    # releases what was stored before the barrier, and acquires what others released.
    ends = tl.maximum((length + chunk - 1) // chunk, 1)
    counter = SUMS + (member.to(tl.int64) * heads + pid % groups * HB) * (D + DV + 2) + D + 1
    tl.debug_barrier()
    if tl.atomic_add(counter, 1.0, sem="acq_rel") == ends - 1:
        tl.debug_barrier()
        begin_slot, _ = slots_of(PTR, member, size, chunk)
        norm = _joined_numbers(WORK, begin_slot, ends, heads, head, is_head, row_width(DV), DV, B)
        mixture = _joined(WORK, begin_slot, ends, heads, head, is_head, row_width(DV), DV, DVP, B)
        to = tl.arange(0, DVP)
        mask = is_head[:, None] & (to < DV)[None, :]
        tl.store(at_sums + D + 1, norm, mask=is_head)
        tl.store(at_sums[:, None] + D + 2 + to[None, :], mixture, mask=mask)
        out = mixture / (norm + eps_k)[:, None] * factor
        at_out = OUT + ((member.to(tl.int64) * heads + head) * DV)[:, None] + to[None, :]
        tl.store(at_out, out.to(OUT.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_RUNTIME)
def grad_source_kernel(
    K, V, SUMS, GRAD_OUT, GRAD_K, GRAD_V, MEAN, LENGTHS, PTR,
    slots, members, size, chunk, heads, k_b, k_s, k_h, v_b, v_s, v_h, eps_q, eps_k, factor,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, HB: tl.constexpr, R: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Gradients of sources, and MEAN ``[slots, H, D]``: sums of that of the mean query."""
    groups = (heads + HB - 1) // HB
    pid = tl.program_id(0)
    slot = pid // groups
    head, is_head = _heads(pid % groups, heads, HB)
    member, begin, length, first, limit = locate(PTR, LENGTHS, slot, members, size, chunk)
    batch = member.to(tl.int64) if PTR is None else tl.full([], 0, tl.int64)
    at = member.to(tl.int64) * heads + head
    at_sums = at * (D + DV + 2)
    shrink = 1.0 / (tl.load(SUMS + at_sums, mask=is_head, other=0.0) + eps_q)
    mean = _row(SUMS, at_sums, is_head, 1, D, DP) * shrink[:, None]
    shrink = 1.0 / (tl.load(SUMS + at_sums + D + 1, mask=is_head, other=0.0) + eps_k)
    mixture = _row(SUMS, at_sums, is_head, D + 2, DV, DVP) * shrink[:, None]
    to_value = _row(GRAD_OUT, at * DV, is_head, 0, DV, DVP) * (factor * shrink)[:, None]

    to_mean = tl.zeros([R, HB, DP], tl.float32)
    end = tl.minimum(limit, first + chunk)
    for start in range(first, end, R):
        at_k = _at(K, batch, k_b, begin + start, k_s, head, k_h, R, DP, ALIGN)
        at_v = _at(V, batch, v_b, begin + start, v_s, head, v_h, R, DVP, ALIGN)
        # Padding is zero, and so is its gradient.
        k = tl.load(at_k, mask=_mask(start, tl.minimum(end, length), is_head, R, D, DP), other=0.0).to(tl.float32)
        v = tl.load(at_v, mask=_mask(start, tl.minimum(end, length), is_head, R, DV, DVP), other=0.0).to(tl.float32)
        score = tl.sum(k * mean[None, :, :], 2)
        to_score = tl.where(score <= 0.0, 0.0, tl.sum((v - mixture[None, :, :]) * to_value[None, :, :], 2))
        to_mean += to_score[:, :, None] * k
        grad_k = to_score[:, :, None] * mean[None, :, :]
        weight = tl.maximum(score, 0.0, propagate_nan=tl.PropagateNan.ALL)
        grad_v = weight[:, :, None] * to_value[None, :, :]
        at_k = _at(GRAD_K, batch, size * heads * D, begin + start, heads * D, head, D, R, DP, ALIGN)
        at_v = _at(GRAD_V, batch, size * heads * DV, begin + start, heads * DV, head, DV, R, DVP, ALIGN)
        tl.store(at_k, grad_k.to(GRAD_K.dtype.element_ty), mask=_mask(start, end, is_head, R, D, DP))
        tl.store(at_v, grad_v.to(GRAD_V.dtype.element_ty), mask=_mask(start, end, is_head, R, DV, DVP))
    _store(MEAN, slot, heads, head, is_head, tl.sum(to_mean, 0), None, D, D, DP)


@triton.jit(do_not_specialize=_RUNTIME)
def grad_query_kernel(
    Q, SUMS, MEAN, GRAD_Q, LENGTHS, PTR, OTHER_PTR,
    slots, members, size, chunk, other_size, other_chunk, heads, q_b, q_t, q_h, eps,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, HB: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Gradient of queries: with e their lengths and u the gradient of the sum of e q, e u + (u q + that of e) q / e."""
    groups = (heads + HB - 1) // HB
    pid = tl.program_id(0)
    slot = pid // groups
    head, is_head = _heads(pid % groups, heads, HB)
    member, begin, length, first, limit = locate(PTR, LENGTHS, slot, members, size, chunk)
    if first >= limit:
        return
    batch = member.to(tl.int64) if PTR is None else tl.full([], 0, tl.int64)
    one, count = slots_of(OTHER_PTR, member, other_size, other_chunk)
    at_sums = (member.to(tl.int64) * heads + head) * (D + DV + 2)
    shrink = 1.0 / (tl.load(SUMS + at_sums, mask=is_head, other=0.0) + eps)
    mean = _row(SUMS, at_sums, is_head, 1, D, DP) * shrink[:, None]
    to_query = _joined(MEAN, one, count, heads, head, is_head, D, D, DP, B) * shrink[:, None]
    to_total = -tl.sum(to_query * mean, 1)
    end = tl.minimum(limit, first + chunk)
    for start in range(first, end, R):
        at = _at(Q, batch, q_b, begin + start, q_t, head, q_h, R, DP, ALIGN)
        x = tl.load(at, mask=_mask(start, tl.minimum(end, length), is_head, R, D, DP), other=0.0).to(tl.float32)
        of_row = _lengths(x)
        along = tl.sum(x * to_query[None, :, :], 2) + to_total[None, :]
        along = along / tl.where(of_row == 0.0, 1.0, of_row)
        grad = of_row[:, :, None] * to_query[None, :, :] + along[:, :, None] * x
        at = _at(GRAD_Q, batch, size * heads * D, begin + start, heads * D, head, D, R, DP, ALIGN)
        tl.store(at, grad.to(GRAD_Q.dtype.element_ty), mask=_mask(start, end, is_head, R, D, DP))
