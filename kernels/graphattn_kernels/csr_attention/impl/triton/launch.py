"""Tile sizes and launches. No autotuning: sizes follow from heads and channels, so only the first call is slow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from graphattn_kernels._schedule import Schedule, schedule_of
from graphattn_kernels._triton import aligned, guard, launch, next_power_of_2, split
from graphattn_kernels.csr_attention.impl.triton.backward import column_kernel, row_kernel, sum_kernel
from graphattn_kernels.csr_attention.impl.triton.forward import attend_kernel, merge_kernel
from graphattn_kernels.csr_attention.inputs import Inputs, contiguous_like
from graphattn_kernels.structure import Structure, View

__all__ = ["backward", "forward"]

_MERGE_PROGRAMS = 1024
_MERGE_PARTS = 16


@dataclass(frozen=True, eq=False)  # hashed by identity: Triton's own hash of a kernel takes microseconds
class _Pass:
    """A kernel and the shape of its work. Tuned on an H200 (see experiments/benchmarks): differences of a few percent,
    save that one head at a time pays in the forward pass where a head alone fills a line of 128 bytes."""

    kernel: Any
    slice_bytes: int
    """Of a gathered row that a program takes at once: as many heads as that makes."""
    unroll: int
    """Edges of a row in flight."""
    lane_bytes: int = 16
    """Of a row that each lane of the one warp loads at once."""


_FORWARD = _Pass(attend_kernel, 256, 2)
_ROW = _Pass(row_kernel, 512, 2)
_COLUMN = _Pass(column_kernel, 512, 1)


def _tuned(step: _Pass, dtype: torch.dtype, width: int, widest: int, additive: bool) -> _Pass:
    if step is _FORWARD and additive and width == 1:  # GAT gathers values only: twice as many for each index
        return replace(step, slice_bytes=1024, unroll=4 if widest >= 64 else 2, lane_bytes=32)
    if step is _FORWARD and not additive and widest * dtype.itemsize >= 128:
        return replace(step, slice_bytes=128)
    if step is _ROW and additive:
        return replace(step, unroll=1)
    if step is _COLUMN and dtype.itemsize > 2:
        return replace(step, slice_bytes=256, unroll=2)
    return step


@lru_cache(256)
def _constants(
    step: _Pass, dtype: torch.dtype, heads: int, width: int, v_width: int, additive: bool, clamped: bool
) -> dict[str, Any]:
    """The constexpr arguments of a kernel: a program is one warp."""
    padded, v_padded = next_power_of_2(width), next_power_of_2(v_width)
    widest = max(padded, v_padded)
    step = _tuned(step, dtype, width, widest, additive)
    channels = 32 * step.lane_bytes // dtype.itemsize
    together = min(next_power_of_2(heads), max(1, min(channels, step.slice_bytes // dtype.itemsize) // widest))
    return {
        "H": heads,
        "D": width,
        "DV": v_width,
        "HB": together,
        "DP": padded,
        "DVP": v_padded,
        "R": max(1, channels // (together * widest)),
        "U": step.unroll,
        "ADDITIVE": additive,
        "CLAMPED": clamped,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": 1,
    }


@lru_cache(256)
def _scalars(scale: float, clamp: float, negative_slope: float, dropout_p: float) -> tuple[float | int, ...]:
    threshold = int(dropout_p * 2**32)
    return (
        *split(scale),
        *split(clamp),
        *split(negative_slope),
        *split(1.0 / (1.0 - dropout_p)),
        threshold - 2**32 if threshold >= 2**31 else threshold,  # the bits of an unsigned number
    )


def _rows(x: Tensor) -> Tensor:
    """``x [N, H, D]`` with its rows dense; the stride between rows is free, as in a packed projection."""
    dense = x.is_contiguous() or (x.stride(2) == 1 and x.stride(1) == x.shape[2])
    return aligned(x if dense else x.contiguous())


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else aligned(x.contiguous())


class _Call:
    """The arguments that all three kernels take, prepared once."""

    def __init__(self, inputs: Inputs, *more: Tensor | None) -> None:
        q, k, v = _rows(inputs.q), _rows(inputs.k), _rows(inputs.v)
        bias, gate, own = inputs.edge_bias, _dense(inputs.edge_gate), _dense(inputs.edge_rows)
        att, seed = _dense(inputs.att), inputs.dropout_seed
        self.q, self.dtype = q, inputs.dtype
        self.tensors = (q, k, v, bias, gate, own, att, seed)
        strides = q.stride(0), k.stride(0), v.stride(0)
        scalars = _scalars(inputs.scale, inputs.clamp or 0.0, inputs.negative_slope or 0.0, inputs.dropout_p)
        self.numbers = (*strides, *((0, 0) if bias is None else bias.stride()), *scalars)
        self.shape = (q.dtype, q.shape[1], q.shape[2], v.shape[2], inputs.additive, inputs.clamp is not None)
        # All that the kernels are compiled for, save what belongs to a graph.
        self.kind = (
            self.shape,
            q.get_device(),
            tuple([(n == 1, n % 16 == 0) for n in strides]),
            tuple([x is None for x in (bias, gate, own, att, seed, *more)]),
            inputs.need_product,
        )
        # Edge tensors and dropout are indexed by the caller's edge numbers.
        self.needs_edges = inputs.need_product or not (bias is gate is own is seed is None)

    def run(self, step: _Pass, view: View, schedule: Schedule, arrays: tuple[Any, ...], parts: tuple[Any, ...]) -> None:
        """Launch over the runs of ``schedule``; ``arrays`` follow the inputs, ``parts`` the schedule."""
        edge_id = view.edge_id if self.needs_edges else None
        row, begin, end, num_parts, hubs = schedule
        runs, constants = row.shape[0], _constants(step, *self.shape)
        launch(
            step.kernel,
            (-(-runs // constants["R"]), -(-constants["H"] // constants["HB"]), 1),
            (*self.tensors, *arrays, view.index, edge_id, row, begin, end, *parts, runs, num_parts, *self.numbers),
            constants,
            # Three dtypes: what others have sorted may number edges in another than their ends.
            (self.kind, view.index.dtype, row.dtype, None if edge_id is None else edge_id.dtype, hubs is None),
        )

    def tiles(self, step: _Pass, schedule: Schedule) -> int:
        """Tiles of rows, which are the programs for one group of heads."""
        return -(-schedule.row.shape[0] // _constants(step, *self.shape)["R"])

    def parts(self, schedule: Schedule, *shapes: tuple[int, ...]) -> tuple[Tensor | None, ...]:
        """Room for what the parts of hubs give."""
        if schedule.hubs is None:
            return (None,) * len(shapes)
        return tuple(self.q.new_empty((schedule.num_parts, *shape), dtype=self.dtype) for shape in shapes)


def forward(structure: Structure, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """See the API. Returns output, log-sum-exp and, where it is wanted, the product."""
    view = structure.by_target
    heads, v_width = inputs.v.shape[1:]
    with guard(inputs.q):
        call = _Call(inputs)
        schedule = schedule_of(view)
        out = inputs.v.new_empty((view.num_owners, heads, v_width))
        lse = inputs.q.new_empty((view.num_owners, heads), dtype=call.dtype)
        product = inputs.new_product(view.num_edges)
        parts = call.parts(schedule, (heads,), (heads,), (heads, v_width))
        call.run(_FORWARD, view, schedule, (out, lse, product), parts)
        if schedule.hubs is not None:
            constants = _constants(_FORWARD, *call.shape)
            launch(
                merge_kernel,
                (min(schedule.hubs.row.shape[0], _MERGE_PROGRAMS), heads, 1),
                (out, lse, *parts, *schedule.hubs),
                {"H": heads, "DV": v_width, "DVP": constants["DVP"], "B": _MERGE_PARTS, "ACC": constants["ACC"]}
                | {"num_warps": 1},
            )
    return out, lse, product


def backward(
    structure: Structure,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    grad_product: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, edge_bias, edge_gate, edge_rows and att (``None`` for an absent one)."""
    q, att = inputs.q, inputs.att
    heads, width, v_width = q.shape[1], q.shape[2], inputs.v.shape[2]
    with guard(q):
        out, grad_out = aligned(out.contiguous()), aligned(grad_out.contiguous())
        grad_lse, grad_product = _dense(grad_lse), _dense(grad_product)
        call = _Call(inputs, grad_lse, grad_product)
        call.needs_edges |= grad_product is not None
        grads = [contiguous_like(x) for x in inputs.differentiable()]
        grad_q, grad_k, grad_v, grad_bias, grad_gate, grad_own, _ = grads
        assert grad_q is not None and grad_k is not None and grad_v is not None
        stats = lse.new_empty((*lse.shape, 2))

        view = structure.by_target
        schedule = schedule_of(view)
        parts = call.parts(schedule, (heads, width))
        part_att = None if att is None else q.new_empty((call.tiles(_ROW, schedule), heads, width), dtype=call.dtype)
        saved = (out, lse, grad_out, grad_lse, grad_product, stats)
        call.run(_ROW, view, schedule, (*saved, grad_q, grad_bias, grad_gate, grad_own, part_att), parts)
        _sum_hubs(call, schedule, (grad_q, parts[0]))
        if part_att is not None:
            grads[6] = part_att.sum(0).to(q.dtype)
        del parts, part_att  # their room serves the next pass

        view = structure.by_source
        schedule = schedule_of(view)
        parts = call.parts(schedule, (heads, width), (heads, v_width))
        call.run(_COLUMN, view, schedule, (grad_out, grad_product, stats, grad_k, grad_v), parts)
        _sum_hubs(call, schedule, (grad_k, parts[0]), (grad_v, parts[1]))
    return tuple(grads)


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
    block = min(128, next_power_of_2(max(x_width, y_width)))
    acc = tl.float64 if call.dtype == torch.float64 else tl.float32
    launch(
        sum_kernel,
        (min(schedule.hubs.row.shape[0], _MERGE_PROGRAMS), -(-max(x_width, y_width) // block), 1),
        (*first, *second, *schedule.hubs),
        {"WX": x_width, "WY": y_width, "B": _MERGE_PARTS, "BW": block, "ACC": acc, "num_warps": 1},
    )
