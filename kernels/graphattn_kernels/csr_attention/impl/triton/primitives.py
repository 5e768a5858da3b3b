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

__all__ = ["bounded", "channels", "dropout_factor", "join", "load_runs", "scores", "store_rows"]


@triton.jit
def join(high, low, ACC: tl.constexpr):
    """A number handed over as two float32 (see ``launch.split``)."""
    return tl.full([], high, ACC) + tl.full([], low, ACC)


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
def store_rows(OUT, row, stride, offset, exists, value, mask):
    """Store ``[R, HB, D]`` at rows of ``stride`` channels."""
    where = (row * stride)[:, None, None] + offset[None, :, :]
    tl.store(OUT + where, value.to(OUT.dtype.element_ty), mask=mask[:, None, None] & exists[None, :, :])


@triton.jit
def scores(product, BIAS, bias_e, bias_h, edge, there, head, H: tl.constexpr):
    """Scores ``[R, HB, U]`` before the clamp, from q * k * scale ``[R, HB, U, D]``."""
    score = tl.sum(product, 3)
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
