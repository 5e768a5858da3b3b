"""Forward kernel with online softmax, and the merge of the parts of long rows."""

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

__all__ = ["attend_kernel", "merge_kernel"]

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # below every score, and unlike -inf harmless in a difference


@triton.jit
def _store(OUT, LSE, at_head, valid, top, total, out, DV: tl.constexpr, DVP: tl.constexpr):
    divisor = tl.where(total == 0.0, 1.0, total)
    store_rows(OUT, 0, at_head, DV, valid, out / divisor[:, None], DV, DVP)
    lse = tl.where(total == 0.0, float("-inf"), (top + tl.log2(divisor)) / LOG2E)
    tl.store(LSE + at_head, lse, mask=valid)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SINGLE)
def attend_kernel(
    Q, K, V, OUT, LSE, INDEX, SLOT, MASK, TARGET, SOURCE, ROW, BEGIN, END, PART_STATS, PART_OUT,
    num_runs, num_parts, shared,
    target_blocks, source_blocks, heads, num_targets, num_sources, target_places, source_places,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, scale, bound,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    LEADING: tl.constexpr, CLAMPED: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Owners are targets. Whole rows give OUT and LSE; parts give maximum, sum and unnormalised output."""
    run, entry, strip = program(num_runs, num_parts, shared, BM // M)
    row = tl.load(ROW + run)
    if row < 0:
        return
    block, batch, head = locate(row, entry, target_blocks, heads, LEADING)
    batch = batch.to(tl.int64)
    head = head.to(tl.int64)
    here = strip * M + tl.arange(0, M)
    first, local, valid = tokens(TARGET, block * BM, here, target_places)
    q = load_rows(Q, origin(batch, q_b, head, q_h, ALIGN), first, local, q_t, valid, D, DP, ALIGN, False)
    # Powers of 2 are cheaper than those of e. Clamped scores are in natural units, for an exact comparison.
    factor = LOG2E if CLAMPED else scale * LOG2E

    k_base = origin(batch, k_b, head, k_h, ALIGN)
    v_base = origin(batch, v_b, head, v_h, ALIGN)
    top = tl.full([M], _LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DVP], tl.float32)
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
            score = bounded(score * scale, bound)
        if partial:
            score = tl.where(edges(bits, N), score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1) * factor)
        weight = tl.exp2(score * factor - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, 1)
        out = out * shrink[:, None]
        out = dot(weight.to(v.dtype), v, out, PRECISION)
        top = new_top

    if PART_OUT is not None:
        if run < num_parts:
            part = (run * shared + entry).to(tl.int64)
            tl.store(PART_STATS + part * (2 * BM) + here, top)
            tl.store(PART_STATS + part * (2 * BM) + BM + here, total)
            store_rows(PART_OUT, part * (BM * DV), here, DV, valid, out, DV, DVP)
            return
    at_head = (batch * num_targets + first + local) * heads + head
    _store(OUT, LSE, at_head, valid, top, total, out, DV, DVP)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SINGLE)
def merge_kernel(
    OUT, LSE, PART_STATS, PART_OUT, TARGET, HUB_ROW, PART_PTR, COUNT,
    num_hubs, shared, blocks, heads, num_tokens, places,
    DV: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, M: tl.constexpr, B: tl.constexpr, LEADING: tl.constexpr,
):  # fmt: skip
    """Rows that were cut, from their parts: M places of a block to a program, B parts at a time."""
    hub, entry, strip = program(num_hubs, 0, shared, BM // M)
    if hub >= tl.load(COUNT):
        return
    block, batch, head = locate(tl.load(HUB_ROW + hub), entry, blocks, heads, LEADING)
    here = strip * M + tl.arange(0, M)
    first, local, valid = tokens(TARGET, block * BM, here, places)
    end = tl.load(PART_PTR + hub + 1)

    top = tl.full([M], _LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DVP], tl.float32)
    for begin in range(tl.load(PART_PTR + hub), end, B):
        part, there = parts(begin, end, shared, entry, B)
        at = PART_STATS + (part * (2 * BM))[:, None] + here[None, :]
        part_top = tl.load(at, mask=there[:, None], other=_LOWEST)
        part_total = tl.load(at + BM, mask=there[:, None], other=0.0)
        part_out = load_parts(PART_OUT, part, there, here, BM, DV, DVP)
        new_top = tl.maximum(top, tl.max(part_top, 0))
        shrink = tl.exp2(top - new_top)
        weight = tl.exp2(part_top - new_top[None, :])
        total = total * shrink + tl.sum(weight * part_total, 0)
        out = out * shrink[:, None] + tl.sum(weight[:, :, None] * part_out, 0)
        top = new_top
    at_head = (batch.to(tl.int64) * num_tokens + first + local) * heads + head
    _store(OUT, LSE, at_head, valid, top, total, out, DV, DVP)
