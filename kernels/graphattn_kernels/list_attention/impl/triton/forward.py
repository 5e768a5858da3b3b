"""Forward kernel: online softmax over the entries of a list."""

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

__all__ = ["attend_kernel"]

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # below every score, and unlike -inf harmless in a difference


@triton.jit(do_not_specialize=RUNTIME)
def attend_kernel(
    Q, K, V, OUT, LSE, LISTS, ENDS, TARGET,
    blocks, block, strips, room, num_targets, num_sources, target_stride, heads,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, scale, bound,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    LEADING: tl.constexpr, READS: tl.constexpr, CLAMPED: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """A program has M targets of a block, for a batch entry and head. LISTS ``[copies, blocks, room]``, ENDS ``[copies,
    blocks, strips]`` or None, TARGET ``[1 or copies, blocks * block]`` or None."""
    wait_for_previous(CHAINED)
    pid = tl.program_id(0)
    rows = blocks * strips
    batch, head, copy = locate(pid // rows, heads, LEADING)
    row = pid % rows
    first, local, valid = targets_of(TARGET, copy, target_stride, row // strips, block, row % strips, num_targets, M)
    q = load_rows(Q, origin(batch, q_b, head, q_h, ALIGN), first, local, q_t, valid, D, DP, ALIGN, False)
    # Powers of 2 are cheaper than those of e. Clamped scores are in natural units, for an exact comparison.
    factor = LOG2E if CLAMPED else scale * LOG2E

    k_base = origin(batch, k_b, head, k_h, ALIGN)
    v_base = origin(batch, v_b, head, v_h, ALIGN)
    top = tl.full([M], _LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DVP], tl.float32)
    end = room
    if ENDS is not None:
        end = tl.load(ENDS + copy * rows + row)
    list_ = LISTS + (copy * blocks + row // strips) * room
    at = tl.arange(0, N)
    # The entries are looked up one step ahead: then loading keys waits for no index.
    source, there = entries(list_, at, end, room)
    for start in range(0, end, N):
        here, live = source, there
        k = load_rows(K, k_base, 0, here, k_t, live, D, DP, ALIGN, False)
        v = load_rows(V, v_base, 0, here, v_t, live, DV, DVP, ALIGN, False)
        at += N
        source, there = entries(list_, at, end, room)
        score = dot(q, tl.trans(k), None, PRECISION)
        if CLAMPED:
            score = bounded(score * scale, bound)
        if READS is not None:
            score = tl.where(readable((first + local)[:, None], here[None, :], READS), score, float("-inf"))
        if start + N > end:
            score = tl.where(live[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1) * factor)
        weight = tl.exp2(score * factor - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, 1)
        out = out * shrink[:, None]
        out = dot(weight.to(v.dtype), v, out, PRECISION)
        top = new_top

    at_head = (batch * num_targets + first + local) * heads + head
    divisor = tl.where(total == 0.0, 1.0, total)
    store_rows(OUT, 0, at_head, DV, valid, out / divisor[:, None], DV, DVP)
    tl.store(LSE + at_head, tl.where(total == 0.0, float("-inf"), (top + tl.log2(divisor)) / LOG2E), mask=valid)
