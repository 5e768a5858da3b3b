"""Triton, for CUDA: rows sorted by degree, hubs cut into parts, nothing added atomically."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._schedule import Schedule, schedule_of
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse_triton import accumulator, block, load_runs, rows_of, tile_of
from graphattn_kernels._triton import guard, launch
from graphattn_kernels.structure import View

__all__ = ["row_sum", "spmm", "sum_parts"]

_UNROLL = 4  # edges of a row in flight
# Rows of few channels: more edges at a time, spread over threads, since the longest rows set the time (W1, [E, 8] in
# float32 on an H200: 0.072 ms without, 0.033 with).
_NARROW, _NARROW_UNROLL, _NARROW_TILE = 16, 16, 64
_MERGE_PROGRAMS = 1024
_MERGE_PARTS, _MERGE_CHANNELS = 16, 64


def spmm(view: View, weights: Tensor, values: Tensor) -> Tensor:
    """See the API; ``view`` is sorted by the receiving end."""
    return row_sum(view, values, weights)


def row_sum(view: View, values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum, over the edges of each owner, of the values at their other ends times their weights.

    Args:
        view: The edges.
        values: ``[M, H, D]``.
        weights: ``[E, H]`` or ``[E, H, D]``; ``None``: ones, and the values ``[E, H, D]`` are the edges' own.

    Returns:
        ``[N, H, D]``.
    """
    shape = (view.num_owners, *values.shape[1:])
    channelwise = weights is None or weights.dim() == 3
    if channelwise:  # heads do not matter: one long row of channels
        values = values.reshape(values.shape[0], 1, shape[1] * shape[2])
        weights = None if weights is None else weights.reshape(weights.shape[0], 1, values.shape[2])
    heads, width = values.shape[1:]
    wide = accumulate_dtype(values.dtype)
    tile = tile_of(heads, width, wide)
    source = rows_of(values)
    weight = None if weights is None else rows_of(weights if channelwise else weights.unsqueeze(2))
    with guard(values):
        schedule = schedule_of(view)
        runs = schedule.row.shape[0]
        unroll, rows = _UNROLL, tile.rows
        if tile.heads * tile.width <= _NARROW:
            unroll, rows = _NARROW_UNROLL, min(rows, _NARROW_TILE // (tile.heads * tile.width))
        out = values.new_empty(shape)
        parts = None if schedule.hubs is None else values.new_empty((schedule.num_parts, *shape[1:]), dtype=wide)
        launch(
            row_sum_kernel,
            (-(-runs // rows), tile.blocks, 1),
            (
                *(source.data, None if weight is None else weight.data, out, parts),
                *(None if weight is None else view.index, view.edge_id, *schedule[:3]),
                *(runs, schedule.num_parts),
            ),
            {
                "H": heads,
                "D": width,
                "VALUE_ROW": source.row,
                "VALUE_HEAD": source.head,
                "WEIGHT_ROW": 0 if weight is None else weight.row,
                "WEIGHT_HEAD": 0 if weight is None else weight.head,
                "CHANNELWISE": channelwise,
                "HB": tile.heads,
                "DP": tile.width,
                "R": rows,
                "U": unroll,
                "ACC": accumulator(wide),
                "num_warps": 1,
            },
        )
        if parts is not None:
            sum_parts(out, parts, schedule)
    return out


def sum_parts(out: Tensor, parts: Tensor, schedule: Schedule) -> None:
    """Fill the rows of hubs in ``out [N, ...]`` from ``parts [num_parts, ...]``; the device must be current."""
    assert schedule.hubs is not None
    width = math.prod(out.shape[1:])
    grid = min(schedule.hubs.row.shape[0], _MERGE_PROGRAMS), -(-width // _MERGE_CHANNELS), 1
    constants = {"W": width, "B": _MERGE_PARTS, "BW": _MERGE_CHANNELS, "ACC": accumulator(parts.dtype), "num_warps": 4}
    launch(sum_parts_kernel, grid, (out, parts, *schedule.hubs), constants)


@triton.jit(do_not_specialize=["num_runs", "num_parts"])
def row_sum_kernel(
    VALUES, WEIGHTS, OUT, PARTS, INDEX, EDGE, ROW, BEGIN, END, num_runs, num_parts,
    H: tl.constexpr, D: tl.constexpr, VALUE_ROW: tl.constexpr, VALUE_HEAD: tl.constexpr,
    WEIGHT_ROW: tl.constexpr, WEIGHT_HEAD: tl.constexpr, CHANNELWISE: tl.constexpr,
    HB: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Whole rows give OUT ``[N, H, D]``, parts of hubs PARTS; weights are ``[E, H]`` or, CHANNELWISE, ``[E, H, D]``."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_runs, R)
    head, channel, exists = block(tl.program_id(1), H, D, HB, DP)
    offset = head[:, None] * VALUE_HEAD + channel[None, :]
    total = tl.zeros([R, HB, DP], ACC)
    next_at = begin[:, None] + tl.arange(0, U)[None, :]
    next_edge, next_source = _ends(EDGE, INDEX, next_at, end)
    for _ in range(0, tl.max(end - begin, 0), U):
        at, edge, source = next_at, next_edge, next_source
        there = at < end[:, None]
        mask = there[:, None, :, None] & exists[None, :, None, :]
        # Asked for one step ahead: rows can be gathered as soon as the step begins.
        next_at = at + U
        next_edge, next_source = _ends(EDGE, INDEX, next_at, end)
        where = (source * VALUE_ROW)[:, None, :, None] + offset[None, :, None, :]
        value = tl.load(VALUES + where, mask=mask, other=0.0).to(ACC)
        if WEIGHTS is not None:
            if CHANNELWISE:
                where = (edge * WEIGHT_ROW)[:, None, :, None] + channel[None, None, None, :]
                value *= tl.load(WEIGHTS + where, mask=mask, other=0.0).to(ACC)
            else:
                where = (edge * WEIGHT_ROW)[:, None, :] + (head * WEIGHT_HEAD)[None, :, None]
                mask = there[:, None, :] & (head < H)[None, :, None]
                value *= tl.load(WEIGHTS + where, mask=mask, other=0.0).to(ACC)[:, :, :, None]
        total += tl.sum(value, 2)

    offset = head[:, None] * D + channel[None, :]
    mask = ((row >= 0) & (run >= num_parts))[:, None, None] & exists[None, :, :]
    where = (row * (H * D))[:, None, None] + offset[None, :, :]
    tl.store(OUT + where, total.to(OUT.dtype.element_ty), mask=mask)
    if PARTS is not None:
        mask = ((row >= 0) & (run < num_parts))[:, None, None] & exists[None, :, :]
        where = (run.to(tl.int64) * (H * D))[:, None, None] + offset[None, :, :]
        tl.store(PARTS + where, total, mask=mask)


@triton.jit
def _ends(EDGE, INDEX, at, end):
    """Where edge tensors and VALUES hold the edges at ``at [R, U]``."""
    there = at < end[:, None]
    edge = at.to(tl.int64)
    if EDGE is not None:
        edge = tl.load(EDGE + at, mask=there, other=0).to(tl.int64)
    source = edge
    if INDEX is not None:
        source = tl.load(INDEX + at, mask=there, other=0).to(tl.int64)
    return edge, source


@triton.jit
def sum_parts_kernel(
    OUT, PARTS, HUB_ROW, PART_PTR, COUNT,
    W: tl.constexpr, B: tl.constexpr, BW: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows of hubs in OUT ``[N, W]`` from their parts, B at a time."""
    channel = tl.program_id(1) * BW + tl.arange(0, BW)
    for hub in range(tl.program_id(0), tl.load(COUNT), tl.num_programs(0)):
        last = tl.load(PART_PTR + hub + 1)
        total = tl.zeros([BW], ACC)
        for begin in range(tl.load(PART_PTR + hub), last, B):
            part = (begin + tl.arange(0, B)).to(tl.int64)
            mask = (part < last)[:, None] & (channel < W)[None, :]
            total += tl.sum(tl.load(PARTS + (part * W)[:, None] + channel[None, :], mask=mask, other=0.0), 0)
        row = tl.load(HUB_ROW + hub).to(tl.int64)
        tl.store(OUT + row * W + channel, total.to(OUT.dtype.element_ty), mask=channel < W)
