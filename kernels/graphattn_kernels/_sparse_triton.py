"""What the Triton implementations of the sparse operations share.

A program of one warp holds a tile of 256 channels: R rows (or edges), HB heads, DP channels of each. The loop takes U
edges at a time, a tile ``[R, HB, U, DP]``: Triton deals threads to the last axis first, then from the first on, so U
stays in each thread's own registers, a row of all its heads is one wide load, and no sum over edges crosses threads.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of device functions have no Python types.

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Rows", "Tile", "accumulator", "block", "load_runs", "rows_of", "tile_of"]

_TILE = 256  # channels: eight for each lane, 16 bytes of a half type


class Rows(NamedTuple):
    """A tensor ``[N, H, D]`` whose channels are neighbours."""

    data: Tensor
    row: int
    """Stride between rows; free, as in a slice of a packed projection."""
    head: int
    """Stride between heads: D, or 0 where all heads are the same."""


def rows_of(x: Tensor) -> Rows:
    """``x [N, H, D]``, copied where its layout is another."""
    heads, width = x.shape[1:]
    dense = (width == 1 or x.stride(2) == 1) and (heads == 1 or x.stride(1) in (width, 0))
    if not dense:
        x = x.contiguous()
    return Rows(x, x.stride(0), width if heads == 1 else x.stride(1))


class Tile(NamedTuple):
    """How much a program holds."""

    heads: int
    width: int
    """Channels, a power of two."""
    rows: int
    """For each warp."""
    blocks: int
    """Programs that share a row: groups of heads times blocks of channels."""


@cache
def tile_of(heads: int, width: int, dtype: torch.dtype) -> Tile:
    """The tile for rows ``[heads, width]`` that are summed in ``dtype``."""
    tile = _TILE // 2 if dtype == torch.float64 else _TILE
    depth = min(tile, triton.next_power_of_2(max(width, 1)))
    group = min(triton.next_power_of_2(max(heads, 1)), tile // depth)
    rows = min(32, tile // (group * depth))  # of narrow rows, one a lane
    return Tile(group, depth, rows, -(-heads // group) * -(-width // depth))


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for the dtype that sums have."""
    return tl.float64 if dtype == torch.float64 else tl.float32


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
def block(part, H: tl.constexpr, D: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr):
    """Heads ``[HB]`` and channels ``[DP]`` of block ``part`` of a row, and which of them exist ``[HB, DP]``."""
    blocks: tl.constexpr = (D + DP - 1) // DP
    head = (part // blocks) * HB + tl.arange(0, HB)
    channel = (part % blocks) * DP + tl.arange(0, DP)
    exists = tl.broadcast_to((head < H)[:, None], (HB, DP))
    if D % DP != 0:
        exists = exists & (channel < D)[None, :]
    return head, channel, exists
