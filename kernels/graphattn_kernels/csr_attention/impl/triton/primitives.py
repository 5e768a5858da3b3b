"""What the three kernels share.

A program handles R rows at once, HB heads and all channels: a tile ``[R, HB, D]`` stays in registers while the loop
takes the next U edges of each row, a tile ``[R, HB, U, D]``. Triton deals threads to the
last axis first, then from the first on, so U (the third) stays in each thread's own registers: the only sums across
threads are those over D.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "RUNTIME",
    "SCALARS",
    "bounded",
    "channels",
    "dropout_factor",
    "gather_rows",
    "leaky",
    "load_att",
    "load_edges",
    "load_rows",
    "load_runs",
    "load_stats",
    "store_edges",
    "store_rows",
    "sum_scores",
    "terms_of",
]


# Arguments whose values are not compiled for, and pointers whose alignment is not: those of single numbers.
RUNTIME = ["num_runs", "num_parts", "bias_e", "bias_h", "threshold"]
SCALARS = ["BIAS", "ATT", "SEED", "LSE", "GRAD_LSE", "STATS", "GRAD_BIAS", "INDEX", "EDGE", "ROW", "BEGIN", "END"]


@triton.jit
def load_runs(ROW, BEGIN, END, num_runs, R: tl.constexpr):
    """The R runs of edges of this program; row -1 where there is none."""
    run = tl.program_id(0) * R + tl.arange(0, R)
    there = run < num_runs
    row = tl.load(ROW + run, mask=there, other=-1).to(tl.int64)
    begin = tl.load(BEGIN + run, mask=there, other=0)
    end = tl.load(END + run, mask=there, other=0)
    return run, row, begin, end


@triton.jit
def channels(head, H: tl.constexpr, D: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr):
    """Offsets ``[HB, DP]`` of the channels of ``head`` inside a row, and which of them exist."""
    channel = tl.arange(0, DP)
    offset = head[:, None] * D + channel[None, :]
    exists = tl.broadcast_to((head < H)[:, None], (HB, DP))
    if D != DP:
        exists = exists & (channel < D)[None, :]
    return offset, exists


@triton.jit
def load_rows(X, row, stride, offset, exists, valid, ACC: tl.constexpr):
    """``[R, HB, D]`` of rows that are ``stride`` numbers apart."""
    where = (row * stride)[:, None, None] + offset[None, :, :]
    return tl.load(X + where, mask=valid[:, None, None] & exists[None, :, :], other=0.0).to(ACC)


@triton.jit
def store_rows(X, row, stride, offset, exists, value, mask):
    """The inverse of :func:`load_rows`."""
    where = (row * stride)[:, None, None] + offset[None, :, :]
    tl.store(X + where, value.to(X.dtype.element_ty), mask=mask[:, None, None] & exists[None, :, :])


@triton.jit
def gather_rows(X, row, stride, offset, exists, there, ACC: tl.constexpr):
    """``[R, HB, U, D]`` of the rows ``row [R, U]``."""
    where = (row * stride)[:, None, :, None] + offset[None, :, None, :]
    return tl.load(X + where, mask=there[:, None, :, None] & exists[None, :, None, :], other=0.0).to(ACC)


@triton.jit
def load_edges(EDGE, at, there):
    """The caller's number of each edge ``[R, U]``."""
    edge = at
    if EDGE is not None:
        edge = tl.load(EDGE + at, mask=there, other=0)
    return edge.to(tl.int64)


@triton.jit
def store_edges(X, edge, stride, offset, exists, value, there):
    """Store ``[R, HB, U, D]`` at the rows ``edge [R, U]``."""
    where = (edge * stride)[:, None, :, None] + offset[None, :, None, :]
    tl.store(X + where, value.to(X.dtype.element_ty), mask=there[:, None, :, None] & exists[None, :, None, :])


@triton.jit
def load_att(ATT, offset, exists, factor, HB: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr):
    """``[HB, DP]``: the vector of an additive score (ones where there is none) times the scale."""
    att = tl.full([HB, DP], 1.0, ACC)
    if ATT is not None:
        att = tl.load(ATT + offset, mask=exists, other=0.0).to(ACC)
    return att * factor


@triton.jit
def load_stats(STATS, at, mask, ACC: tl.constexpr):
    """Two neighbouring numbers; two of float32 in one load."""
    if ACC == tl.float32:
        pair = tl.load(STATS.to(tl.pointer_type(tl.int64)) + at, mask=mask, other=0)
        first = (pair & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
        second = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        first = tl.load(STATS + at * 2, mask=mask, other=0.0)
        second = tl.load(STATS + at * 2 + 1, mask=mask, other=0.0)
    return first, second


@triton.jit
def leaky(x, negative_slope):
    """LeakyReLU."""
    return tl.where(x > 0, x, x * negative_slope)


@triton.jit
def terms_of(mine, other, gate, att, negative_slope, ADDITIVE: tl.constexpr):
    """What the score is the sum of over channels, ``[R, HB, U, D]``: ``mine [R, HB, D]`` is the row's own query or
    key (for a dot score times the scale), ``other`` that of the other end, ``att [HB, D]`` includes the scale.

    Returns the terms, and what stands inside the LeakyReLU.
    """
    if ADDITIVE:
        total = mine[:, :, None, :] + other
        if gate is not None:
            total += gate
        terms = leaky(total, negative_slope) * att[None, :, None, :]
    else:
        total = mine[:, :, None, :] * other
        if gate is not None:
            total *= gate
        terms = total
    return terms, total


@triton.jit
def sum_scores(terms, BIAS, bias_e, bias_h, edge, there, head, H: tl.constexpr):
    """Scores ``[R, HB, U]`` before the clamp."""
    score = tl.sum(terms, 3)
    if BIAS is not None:
        where = (edge * bias_e)[:, None, :] + (head * bias_h)[None, :, None]
        mask = there[:, None, :] & (head < H)[None, :, None]
        score += tl.load(BIAS + where, mask=mask, other=0.0).to(score.dtype)
    return score


@triton.jit
def bounded(score, clamp):
    """Clamped scores, NaN kept."""
    return tl.where(score > clamp, clamp, tl.where(score < -clamp, -clamp, score))


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_factor(SEED, edge, head, threshold, inverse_keep):
    """The factor of ``graphattn_kernels._random.dropout_scale`` for ``edge [R, U]``: ``[R, HB, U]``, the same bits."""
    low = tl.load(SEED).to(tl.uint32)
    high = tl.load(SEED + 1).to(tl.uint32)
    counter = _mix(edge.to(tl.uint32) ^ low)
    counter = _mix(counter ^ (edge >> 32).to(tl.uint32) ^ high)
    bits = _mix(counter[:, None, :] + (head.to(tl.uint32) * 0x9E3779B9)[None, :, None])
    return tl.where(bits >= tl.full([], threshold, tl.int32).to(tl.uint32, bitcast=True), inverse_keep, 0.0)
