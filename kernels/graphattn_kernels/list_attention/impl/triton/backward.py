"""Backward kernels. Weights are computed again from the log-sum-exp. Each entry of each list gets the gradients of the
row that it names, in a place of its own; these are then summed source by source, in the order of the lists. Nothing is
added atomically."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

from graphattn_kernels._triton import wait_for_previous
from graphattn_kernels.block_attention.impl.triton.primitives import (
    LOG2E,
    bounded,
    dot,
    load_rows,
    origin,
    store_rows,
)
from graphattn_kernels.list_attention.impl.triton.primitives import RUNTIME, entries, locate, readable, targets_of

__all__ = ["column_kernel", "row_kernel", "sum_kernel"]


@triton.jit
def _stats(OUT, LSE, GRAD_OUT, GRAD_LSE, at_head, valid, DV: tl.constexpr, DVP: tl.constexpr):
    """``grad_out``, the log-sum-exp in powers of 2 (+inf where no weight is to come out), and delta = out . grad_out -
    grad_lse, of the targets ``at_head``."""
    channel = tl.arange(0, DVP)
    at = at_head[:, None] * DV + channel[None, :]
    mask = valid[:, None] & (channel < DV)[None, :]
    grad_out = tl.load(GRAD_OUT + at, mask=mask, other=0.0)
    out = tl.load(OUT + at, mask=mask, other=0.0)
    delta = tl.sum(grad_out.to(tl.float32) * out.to(tl.float32), 1)
    if GRAD_LSE is not None:
        delta -= tl.load(GRAD_LSE + at_head, mask=valid, other=0.0)
    lse = tl.load(LSE + at_head, mask=valid, other=float("-inf"))
    return grad_out, tl.where(lse == float("-inf"), float("inf"), lse * LOG2E), delta


@triton.jit(do_not_specialize=RUNTIME)
def row_kernel(
    Q, K, V, OUT, LSE, GRAD_OUT, GRAD_LSE, GRAD_Q, PART_K, PART_V, LISTS, ENDS, TARGET,
    blocks, block, strips, room, num_targets, num_sources, target_stride, heads,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, scale, bound,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    LEADING: tl.constexpr, READS: tl.constexpr, CLAMPED: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """A program has M targets of a block. Where these are all of it, PART_K ``[B * H, blocks, room, D]`` and PART_V get
    the gradients of the list's entries in the same pass."""
    wait_for_previous(CHAINED)
    pid = tl.program_id(0)
    rows = blocks * strips
    batch, head, copy = locate(pid // rows, heads, LEADING)
    row = pid % rows
    first, local, valid = targets_of(TARGET, copy, target_stride, row // strips, block, row % strips, num_targets, M)
    factor = LOG2E if CLAMPED else scale * LOG2E
    at_head = (batch * num_targets + first + local) * heads + head
    grad_out, lse, delta = _stats(OUT, LSE, GRAD_OUT, GRAD_LSE, at_head, valid, DV, DVP)
    q = load_rows(Q, origin(batch, q_b, head, q_h, ALIGN), first, local, q_t, valid, D, DP, ALIGN, False)

    k_base = origin(batch, k_b, head, k_h, ALIGN)
    v_base = origin(batch, v_b, head, v_h, ALIGN)
    part = (pid // rows * blocks + row // strips).to(tl.int64) * room
    grad_q = tl.zeros([M, DP], tl.float32)
    end = room
    if ENDS is not None:
        end = tl.load(ENDS + copy * rows + row)
    list_ = LISTS + (copy * blocks + row // strips) * room
    at = tl.arange(0, N)
    source, there = entries(list_, at, end, room)
    for start in range(0, end, N):
        here, live = source, there
        k = load_rows(K, k_base, 0, here, k_t, live, D, DP, ALIGN, False)
        v = load_rows(V, v_base, 0, here, v_t, live, DV, DVP, ALIGN, False)
        at += N
        source, there = entries(list_, at, end, room)
        score = dot(q, tl.trans(k), None, PRECISION)
        if CLAMPED:
            score = score * scale
            inside = tl.abs(score) <= bound
            score = bounded(score, bound)
        weight = tl.exp2(score * factor - lse[:, None])
        if READS is not None:
            weight = tl.where(readable((first + local)[:, None], here[None, :], READS), weight, 0.0)
        if start + N > end:
            weight = tl.where(live[None, :], weight, 0.0)
        slope = weight * (dot(grad_out, tl.trans(v), None, PRECISION) - delta[:, None])
        if CLAMPED:
            slope = tl.where(inside, slope, 0.0)
        slope = slope.to(k.dtype)
        grad_q = dot(slope, k, grad_q, PRECISION)
        if PART_K is not None:
            grad_v = dot(tl.trans(weight.to(v.dtype)), grad_out, None, PRECISION)
            store_rows(PART_V, (part + start) * DV, tl.arange(0, N), DV, live, grad_v, DV, DVP)
            grad_k = dot(tl.trans(slope), q, None, PRECISION) * scale
            store_rows(PART_K, (part + start) * D, tl.arange(0, N), D, live, grad_k, D, DP)
    store_rows(GRAD_Q, 0, at_head, D, valid, grad_q * scale, D, DP)


@triton.jit(do_not_specialize=RUNTIME)
def column_kernel(
    Q, K, V, OUT, LSE, GRAD_OUT, GRAD_LSE, PART_K, PART_V, LISTS, LENGTH, TARGET,
    chunks, blocks, block, room, num_targets, num_sources, target_stride, heads,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, scale, bound,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    LEADING: tl.constexpr, READS: tl.constexpr, CLAMPED: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """A program has N entries of a list, and goes through the targets of the block M at a time; scores stand
    transposed, ``[source, target]``."""
    wait_for_previous(CHAINED)
    pid = tl.program_id(0)
    entry = pid // (blocks * chunks)
    batch, head, copy = locate(entry, heads, LEADING)
    block_id = pid // chunks % blocks
    list_ = copy * blocks + block_id
    end = room
    if LENGTH is not None:
        end = tl.load(LENGTH + list_)
    start = pid % chunks * N
    if start >= end:
        return
    source, live = entries(LISTS + list_ * room, start + tl.arange(0, N), end, room)
    k = load_rows(K, origin(batch, k_b, head, k_h, ALIGN), 0, source, k_t, live, D, DP, ALIGN, False)
    v = load_rows(V, origin(batch, v_b, head, v_h, ALIGN), 0, source, v_t, live, DV, DVP, ALIGN, False)
    factor = LOG2E if CLAMPED else scale * LOG2E
    q_base = origin(batch, q_b, head, q_h, ALIGN)
    grad_k = tl.zeros([N, DP], tl.float32)
    grad_v = tl.zeros([N, DVP], tl.float32)
    begin = 0
    if READS == "until" or READS == "before":
        if TARGET is None:  # targets before all of these sources read none of them
            least = tl.min(tl.where(live, source, num_sources), 0).to(tl.int32)
            begin = tl.maximum(least - block_id * block, 0) // M * M
    for some in range(begin, block, M):
        first, local, valid = targets_of(TARGET, copy, target_stride, block_id, block, some // M, num_targets, M)
        at_head = (batch * num_targets + first + local) * heads + head
        q = load_rows(Q, q_base, first, local, q_t, valid, D, DP, ALIGN, False)
        grad_out, lse, delta = _stats(OUT, LSE, GRAD_OUT, GRAD_LSE, at_head, valid, DV, DVP)
        score = dot(k, tl.trans(q), None, PRECISION)
        if CLAMPED:
            score = score * scale
            inside = tl.abs(score) <= bound
            score = bounded(score, bound)
        weight = tl.exp2(score * factor - lse[None, :])
        if READS is not None:
            weight = tl.where(readable((first + local)[None, :], source[:, None], READS), weight, 0.0)
        grad_v = dot(weight.to(v.dtype), grad_out, grad_v, PRECISION)
        slope = weight * (dot(v, tl.trans(grad_out), None, PRECISION) - delta[None, :])
        if CLAMPED:
            slope = tl.where(inside, slope, 0.0)
        grad_k = dot(slope.to(k.dtype), q, grad_k, PRECISION)
    part = (entry * blocks + block_id).to(tl.int64) * room + start
    store_rows(PART_K, part * D, tl.arange(0, N), D, live, grad_k * scale, D, DP)
    store_rows(PART_V, part * DV, tl.arange(0, N), DV, live, grad_v, DV, DVP)


@triton.jit(do_not_specialize=RUNTIME)
def sum_kernel(
    GRAD_K, GRAD_V, PART_K, PART_V, COUNT, ENTRY,
    chunks, blocks, room, ranks, num_sources, heads,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    LEADING: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A program has N sources of a batch entry and head, and adds R parts of each at a time: more loads are under way.
    COUNT ``[copies, S]``, ENTRY ``[copies, ranks, S]``: which entries of the lists name a source."""
    wait_for_previous(CHAINED)
    pid = tl.program_id(0)
    entry = pid // chunks
    batch, head, copy = locate(entry, heads, LEADING)
    source = pid % chunks * N + tl.arange(0, N)
    there = source < num_sources
    count = tl.load(COUNT + copy * num_sources + source, mask=there, other=0)
    channel, v_channel = tl.arange(0, DP), tl.arange(0, DVP)
    grad_k = tl.zeros([N, DP], tl.float32)
    grad_v = tl.zeros([N, DVP], tl.float32)
    base = entry.to(tl.int64) * blocks * room
    most = tl.max(count, 0)
    some = tl.arange(0, R)
    at = ENTRY + copy * ranks * num_sources + source[:, None] + (some * num_sources)[None, :]
    part = tl.load(at, mask=some[None, :] < count[:, None], other=0)
    for rank in range(0, most, R):
        live = rank + some[None, :] < count[:, None]  # made anew in each step: carried along, it would be moved about
        row = base + part
        at += R * num_sources
        part = tl.load(at, mask=rank + R + some[None, :] < count[:, None], other=0)
        k_at = PART_K + row[:, :, None] * D + channel[None, None, :]
        v_at = PART_V + row[:, :, None] * DV + v_channel[None, None, :]
        k = tl.load(k_at, mask=live[:, :, None] & (channel < D)[None, None, :], other=0.0)
        v = tl.load(v_at, mask=live[:, :, None] & (v_channel < DV)[None, None, :], other=0.0)
        grad_k += tl.sum(k.to(tl.float32), 1)
        grad_v += tl.sum(v.to(tl.float32), 1)
    at_head = (batch * num_sources + source) * heads + head
    store_rows(GRAD_K, 0, at_head, D, there, grad_k, D, DP)
    store_rows(GRAD_V, 0, at_head, DV, there, grad_v, DV, DVP)
