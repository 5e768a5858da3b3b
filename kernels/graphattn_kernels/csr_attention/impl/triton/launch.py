"""Tile sizes and launches. No autotuning: sizes follow from heads and channels, so only the first call is slow."""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.csr_attention.impl.triton.backward import column_kernel, row_kernel, sum_kernel
from graphattn_kernels.csr_attention.impl.triton.forward import attend_kernel, merge_kernel
from graphattn_kernels.csr_attention.impl.triton.schedule import Schedule, schedule_of
from graphattn_kernels.structure import Structure, View

__all__ = ["backward", "forward"]

_TILE = 256  # channels of one program: eight for each lane of its one warp, 16 bytes of a half type
_FORWARD_UNROLL, _BACKWARD_UNROLL = 4, 2  # edges of a row in flight
_MERGE_PROGRAMS = 1024
_MERGE_PARTS = 16


class _Tile(NamedTuple):
    heads: int
    rows: int
    width: int
    v_width: int


def _tile(q: Tensor, v: Tensor) -> _Tile:
    """All heads of a row at once where they fit: measured faster than passes over fewer heads (H200, d = 16 and 64)."""
    width, v_width = triton.next_power_of_2(q.shape[2]), triton.next_power_of_2(v.shape[2])
    widest = max(width, v_width)
    tile = _TILE // 2 if v.dtype == torch.float64 else _TILE
    heads = min(triton.next_power_of_2(q.shape[1]), max(1, tile // widest))
    return _Tile(heads, max(1, tile // (heads * widest)), width, v_width)


def _split(x: float) -> tuple[float, float]:
    """Two numbers that float32 holds and whose sum is ``x`` to 48 bits: Triton passes floats as float32."""
    high = struct.unpack("f", struct.pack("f", x))[0]
    return high, x - high


def _rows(x: Tensor) -> Tensor:
    """``x [N, H, D]`` with its rows dense; the stride between rows is free, as in a packed projection."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _guard(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class _Call:
    """The arguments that all three kernels take, prepared once."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        edge_bias: Tensor | None,
        edge_gate: Tensor | None,
        scale: float,
        clamp: float | None,
        dropout_p: float,
        dropout_seed: Tensor | None,
    ) -> None:
        self.q, self.k, self.v = _rows(q), _rows(k), _rows(v)
        gate = None if edge_gate is None else edge_gate.contiguous()
        seed = dropout_seed if dropout_p else None
        self.inputs = self.q, self.k, self.v, edge_bias, gate, seed
        threshold = int(dropout_p * 2**32)
        self.numbers = (
            self.q.stride(0),
            self.k.stride(0),
            self.v.stride(0),
            *((0, 0) if edge_bias is None else edge_bias.stride()),
            *_split(scale),
            *_split(0.0 if clamp is None else clamp),
            *_split(1.0 / (1.0 - dropout_p)),
            threshold - 2**32 if threshold >= 2**31 else threshold,  # the bits of an unsigned number
        )
        self.tile = _tile(self.q, self.v)
        self.dtype = accumulate_dtype(q.dtype)
        self.acc = tl.float64 if self.dtype == torch.float64 else tl.float32
        self.constants = {
            "H": q.shape[1],
            "D": q.shape[2],
            "DV": v.shape[2],
            "HB": self.tile.heads,
            "DP": self.tile.width,
            "DVP": self.tile.v_width,
            "R": self.tile.rows,
            "CLAMPED": clamp is not None,
            "ACC": self.acc,
            "num_warps": 1,
        }
        # Bias, gate and dropout are indexed by the caller's edge numbers.
        self.needs_edges = edge_bias is not None or gate is not None or seed is not None

    def run(self, kernel: Any, view: View, schedule: Schedule, arrays: tuple, parts: tuple, unroll: int) -> None:
        """Launch over the runs of ``schedule``; ``arrays`` follow the inputs, ``parts`` the schedule."""
        runs = schedule.row.shape[0]
        grid = triton.cdiv(runs, self.tile.rows), triton.cdiv(self.q.shape[1], self.tile.heads)
        if runs == 0 or grid[1] == 0:
            return
        edge_id = view.edge_id if self.needs_edges else None
        kernel[grid](
            *self.inputs, *arrays, view.index, edge_id, *schedule[:3], *parts,
            runs, schedule.num_parts, *self.numbers, U=unroll, **self.constants,
        )  # fmt: skip

    def parts(self, schedule: Schedule, *shape: int) -> Tensor | None:
        """Room for what the parts of hubs give."""
        if schedule.hubs is None:
            return None
        return self.q.new_empty((schedule.num_parts, *shape), dtype=self.dtype)


def forward(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    scale: float,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See the API. Returns output and log-sum-exp."""
    view = structure.by_target
    heads, v_width = v.shape[1:]
    with _guard(q):
        call = _Call(q, k, v, edge_bias, edge_gate, scale, clamp, dropout_p, dropout_seed)
        schedule = schedule_of(view)
        out = v.new_empty((view.num_owners, heads, v_width))
        lse = q.new_empty((view.num_owners, heads), dtype=call.dtype)
        parts = (
            call.parts(schedule, heads),
            call.parts(schedule, heads),
            call.parts(schedule, heads, v_width),
        )
        call.run(attend_kernel, view, schedule, (out, lse), parts, _FORWARD_UNROLL)
        if schedule.hubs is not None:
            merge_kernel[(min(schedule.hubs.row.shape[0], _MERGE_PROGRAMS), heads)](
                out, lse, *parts, *schedule.hubs,
                H=heads, DV=v_width, DVP=call.tile.v_width, B=_MERGE_PARTS, ACC=call.acc, num_warps=1,
            )  # fmt: skip
    return out, lse


def backward(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    scale: float,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, edge_bias and edge_gate (empty for an absent one)."""
    heads, width, v_width = q.shape[1], q.shape[2], v.shape[2]
    with _guard(q):
        call = _Call(q, k, v, edge_bias, edge_gate, scale, clamp, dropout_p, dropout_seed)
        grad_out, grad_lse = grad_out.contiguous(), grad_lse.contiguous()
        grad_q, grad_k, grad_v = _dense_like(q), _dense_like(k), _dense_like(v)
        grad_bias = None if edge_bias is None else _dense_like(edge_bias)
        grad_gate = None if edge_gate is None else _dense_like(edge_gate)
        stats = lse.new_empty((*lse.shape, 2))

        view = structure.by_target
        schedule = schedule_of(view)
        part_q = call.parts(schedule, heads, width)
        row_arrays = (out, lse, grad_out, grad_lse, stats, grad_q, grad_bias, grad_gate)
        call.run(row_kernel, view, schedule, row_arrays, (part_q,), _BACKWARD_UNROLL)
        _sum_hubs(call, schedule, (grad_q, part_q))

        view = structure.by_source
        schedule = schedule_of(view)
        part_k = call.parts(schedule, heads, width)
        part_v = call.parts(schedule, heads, v_width)
        column_arrays = (grad_out, stats, grad_k, grad_v)
        call.run(column_kernel, view, schedule, column_arrays, (part_k, part_v), _BACKWARD_UNROLL)
        _sum_hubs(call, schedule, (grad_k, part_k), (grad_v, part_v))
    absent = q.new_empty(0)
    return (
        grad_q,
        grad_k,
        grad_v,
        absent if grad_bias is None else grad_bias,
        absent if grad_gate is None else grad_gate,
    )


def _dense_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _sum_hubs(
    call: _Call,
    schedule: Schedule,
    first: tuple[Tensor, Tensor | None],
    second: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    if schedule.hubs is None:
        return
    x, y = first[0], second[0]
    x_width, y_width = x.shape[1] * x.shape[2], 0 if y is None else y.shape[1] * y.shape[2]
    block = min(128, triton.next_power_of_2(max(x_width, y_width)))
    grid = min(schedule.hubs.row.shape[0], _MERGE_PROGRAMS), triton.cdiv(max(x_width, y_width), block)
    sum_kernel[grid](
        *first, *second, *schedule.hubs,
        WX=x_width, WY=y_width, B=_MERGE_PARTS, BW=block, ACC=call.acc, num_warps=1,
    )  # fmt: skip
