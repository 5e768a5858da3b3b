"""Triton, for CUDA: edges in parallel, in the order of their targets, whose rows therefore stay in the caches."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse_triton import accumulator, block, rows_of, tile_of
from graphattn_kernels._triton import guard, launch
from graphattn_kernels.structure import Structure, View

__all__ = ["edge_products", "sddmm"]

_UNROLL = 4  # edges in flight in a thread
# Tiles one after another: fewer programs to start, where each does little (W1, D = 16, float16 on an H200: 0.19 ms with
# one, 0.11 with four; the other way round, 0.36 and 0.39, where whole rows are written).
_STEPS = 4


def sddmm(structure: Structure, a: Tensor, b: Tensor, channels: bool) -> Tensor:
    """See the API."""
    view = structure.by_target
    if not channels:
        return edge_products(view, a, b, a.new_empty((view.num_edges, a.shape[1])))
    out = a.new_empty((view.num_edges, *a.shape[1:]))
    flat = (x.reshape(x.shape[0], 1, a.shape[1] * a.shape[2]) for x in (a, b, out))  # heads do not matter
    edge_products(view, *flat)
    return out


def edge_products(view: View, a: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
    """``out[e] = a[owner of e] * b[index of e]``, summed over channels where ``out`` is ``[E, H]``.

    Args:
        view: The edges.
        a: ``[N, H, D]``.
        b: ``[M, H, D]``; ``None``: ones.
        out: ``[E, H]`` or ``[E, H, D]``, contiguous; written, in the caller's edge order.
    """
    heads, width = a.shape[1:]
    reduce = out.dim() == 2
    if reduce and not width:
        return out.zero_()
    wide = accumulate_dtype(a.dtype)
    tile = tile_of(heads, width, wide)
    left, right = rows_of(a), None if b is None else rows_of(b)
    steps = _STEPS if reduce else 1
    blocks = -(-heads // tile.heads) if reduce else tile.blocks
    with guard(a):
        launch(
            edge_kernel,
            (-(-view.num_edges // (tile.rows * _UNROLL * steps)), blocks, 1),
            (
                *(left.data, None if right is None else right.data, out),
                *(view.owner, None if right is None else view.index, view.edge_id, view.num_edges),
            ),
            {
                "H": heads,
                "D": width,
                "A_ROW": left.row,
                "A_HEAD": left.head,
                "B_ROW": 0 if right is None else right.row,
                "B_HEAD": 0 if right is None else right.head,
                "REDUCE": reduce,
                "HB": tile.heads,
                "DP": tile.width,
                "R": tile.rows,
                "U": _UNROLL,
                "STEPS": steps,
                "ACC": accumulator(wide),
                "num_warps": 1,
            },
        )
    return out


@triton.jit(do_not_specialize=["num_edges"])
def edge_kernel(
    A, B, OUT, OWNER, INDEX, EDGE, num_edges,
    H: tl.constexpr, D: tl.constexpr, A_ROW: tl.constexpr, A_HEAD: tl.constexpr,
    B_ROW: tl.constexpr, B_HEAD: tl.constexpr, REDUCE: tl.constexpr,
    HB: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, U: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """R x U neighbouring edges at a time, U of them in each thread."""
    blocks: tl.constexpr = (D + DP - 1) // DP
    first = tl.program_id(0).to(tl.int64) * (R * U * STEPS)
    place = tl.arange(0, R)[:, None] * U + tl.arange(0, U)[None, :]
    for step in range(STEPS):
        at = first + step * (R * U) + place
        there = at < num_edges
        row = tl.load(OWNER + at, mask=there, other=0).to(tl.int64)
        other = row
        if INDEX is not None:
            other = tl.load(INDEX + at, mask=there, other=0).to(tl.int64)
        edge = at
        if EDGE is not None:
            edge = tl.load(EDGE + at, mask=there, other=0).to(tl.int64)
        if REDUCE:
            head = tl.program_id(1) * HB + tl.arange(0, HB)
            total = tl.zeros([R, HB, U], ACC)
            for part in range(blocks):
                value = _product(A, B, row, other, there, tl.program_id(1) * blocks + part,
                                 H, D, A_ROW, A_HEAD, B_ROW, B_HEAD, HB, DP, ACC)  # fmt: skip
                total += tl.sum(value, 3)
            where = (edge * H)[:, None, :] + head[None, :, None]
            mask = there[:, None, :] & (head < H)[None, :, None]
            tl.store(OUT + where, total.to(OUT.dtype.element_ty), mask=mask)
        else:
            value = _product(A, B, row, other, there, tl.program_id(1),
                             H, D, A_ROW, A_HEAD, B_ROW, B_HEAD, HB, DP, ACC)  # fmt: skip
            head, channel, exists = block(tl.program_id(1), H, D, HB, DP)
            where = (edge * (H * D))[:, None, :, None] + (head[:, None] * D + channel[None, :])[None, :, None, :]
            mask = there[:, None, :, None] & exists[None, :, None, :]
            tl.store(OUT + where, value.to(OUT.dtype.element_ty), mask=mask)


@triton.jit
def _product(
    A, B, row, other, there, part,
    H: tl.constexpr, D: tl.constexpr, A_ROW: tl.constexpr, A_HEAD: tl.constexpr,
    B_ROW: tl.constexpr, B_HEAD: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Products ``[R, HB, U, DP]`` of one block of channels."""
    head, channel, exists = block(part, H, D, HB, DP)
    mask = there[:, None, :, None] & exists[None, :, None, :]
    offset = head[:, None] * A_HEAD + channel[None, :]
    value = tl.load(A + (row * A_ROW)[:, None, :, None] + offset[None, :, None, :], mask=mask, other=0.0).to(ACC)
    if B is not None:
        offset = head[:, None] * B_HEAD + channel[None, :]
        where = (other * B_ROW)[:, None, :, None] + offset[None, :, None, :]
        value *= tl.load(B + where, mask=mask, other=0.0).to(ACC)
    return value
