"""Tile sizes and launches. No autotuning: sizes stand in a table, so only the first call is slow."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._schedule import Schedule
from graphattn_kernels._triton import aligned, dense_rows, guard, launch, padded, strides_of
from graphattn_kernels.block_attention.impl.triton.backward import column_kernel, row_kernel, sum_kernel
from graphattn_kernels.block_attention.impl.triton.forward import attend_kernel, merge_kernel
from graphattn_kernels.block_attention.impl.triton.plan import plan_of
from graphattn_kernels.blocks import Blocks

__all__ = ["Config", "backward", "configure", "forward"]

_CHUNK = 32  # tiles in a part of a long row
_MERGE_ROWS, _MERGE_PARTS = 4, 16  # places of a program that joins parts, and parts that it takes at a time


class Config(NamedTuple):
    """How a kernel runs."""

    rows: int
    """Places of its block that a program takes."""
    columns: int
    """Places of the other side that a step takes."""
    warps: int
    stages: int
    registers: int | None = None
    """A cap for each thread: more programs at a time hide more latency."""


# For each kernel, the sizes up to so many bytes of a row (of one head, padded to a power of 2). Measured on an H200 in
# bfloat16 and float16, with 10, 64 and 128 channels (32, 128, 256 bytes), on windows, image grids and random masks; the
# widest are chosen to fit on the chip.
_TABLE = {
    attend_kernel: {
        32: Config(64, 64, 4, 1),
        128: Config(64, 64, 4, 2, 128),
        256: Config(64, 64, 4, 3),
        512: Config(64, 32, 4, 2),
    },
    row_kernel: {
        32: Config(64, 64, 4, 1),
        128: Config(64, 64, 4, 2, 128),
        256: Config(64, 64, 4, 2),
        512: Config(64, 32, 4, 1),
        1024: Config(16, 32, 8, 1),
    },
    column_kernel: {
        32: Config(64, 64, 4, 1),
        128: Config(64, 32, 4, 3, 128),
        256: Config(64, 32, 4, 3),
        512: Config(32, 32, 8, 1),
    },
}
_WIDEST = Config(32, 32, 8, 1)


@lru_cache(256)
def configure(kernel: Any, block: int, other: int, width: int, dtype: torch.dtype) -> Config:
    """The sizes for a kernel, a block of the owner, a block of the other side, and the channels of one head."""
    row_bytes = width * dtype.itemsize
    config = next((config for limit, config in _TABLE[kernel].items() if row_bytes <= limit), _WIDEST)
    if dtype == torch.float32 and row_bytes == 512:  # without tensor cores, products take twice the registers
        config = _WIDEST
    return config._replace(rows=min(block, config.rows), columns=min(other, config.columns))


class _Kind(NamedTuple):
    """What the kernels are compiled for, save the graph's own part."""

    dtype: torch.dtype
    device: int
    width: int
    v_width: int
    leading: str
    clamped: bool
    tf32: bool
    align: int
    """A power of 2 that divides every stride, up to what 16 bytes hold."""
    wide: tuple[bool, ...]
    """Which strides need 64 bits."""


@lru_cache(1024)
def _layout(
    dtype: torch.dtype, device: int, leading: str, clamped: bool, tf32: bool, *layouts: tuple[Any, ...]
) -> tuple[tuple[int, ...], _Kind]:
    """The strides of q, k and v, of these shapes and strides, and the kind of their kernels."""
    (q_shape, _), _, (v_shape, _) = layouts
    strides, align = strides_of(dtype, *layouts)
    wide = tuple([n >= 2**31 for n in strides])
    return strides, _Kind(dtype, device, q_shape[3], v_shape[3], leading, clamped, tf32, align, wide)


@lru_cache(1024)
def _constants(kind: _Kind, config: Config, block: int, other: int, even: bool) -> dict[str, Any]:
    """The constexpr arguments of a kernel."""
    return {
        "D": kind.width,
        "DV": kind.v_width,
        "DP": padded(kind.width),
        "DVP": padded(kind.v_width),
        "BM": block,
        "BN": other,
        "M": config.rows,
        "N": config.columns,
        "LEADING": kind.leading,
        "CLAMPED": kind.clamped,
        "EVEN": even,
        "ALIGN": kind.align,
        "PRECISION": "tf32" if kind.tf32 else "ieee",
        "num_warps": config.warps,
        "num_stages": config.stages,
    } | ({} if config.registers is None else {"maxnreg": config.registers})


class _Call:
    """The arguments that the kernels take, prepared once."""

    def __init__(self, blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None) -> None:
        if clamp is None and scale <= 0.0:  # the kernels' short way needs a positive scale
            clamp = float("inf")
        self.blocks = blocks
        self.inputs = q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        batch, targets, self.heads, self.width = q.shape
        self.v_width = v.shape[3]
        self.shared = batch * self.heads // max(1, blocks.copies(batch, self.heads))
        layouts = (q.shape, q.stride()), (k.shape, k.stride()), (v.shape, v.stride())
        tf32 = torch.backends.cuda.matmul.allow_tf32
        strides, self.kind = _layout(q.dtype, q.get_device(), blocks.leading, clamp is not None, tf32, *layouts)
        self.sizes = (
            blocks.target_blocks,
            blocks.source_blocks,
            self.heads,
            targets,
            k.shape[1],
            blocks.target_places,
            blocks.source_places,
            *strides,
            scale,
            clamp or 0.0,
        )

    def parts(self, plan: Schedule, *shape: int) -> Tensor | None:
        """Room for what the parts of long rows give."""
        if plan.hubs is None:
            return None
        return self.inputs[0].new_empty((plan.num_parts, self.shared, *shape), dtype=torch.float32)

    def run(self, kernel: Any, owner: Blocks, plan: Schedule, arrays: tuple[Any, ...], parts: tuple[Any, ...]) -> None:
        """Launch over the runs of ``plan``; ``owner`` has the side that rows belong to as its targets."""
        block, other, view = owner.block_targets, owner.block_sources, owner.by_target
        even = owner.source is None and owner.num_sources % other == 0  # every place of every tile holds somebody
        width = max(padded(self.width), padded(self.v_width))
        config = configure(kernel, block, other, width, self.kind.dtype)
        runs = plan.row.shape[0]
        orders = [None if x is None else aligned(x) for x in (self.blocks.target, self.blocks.source)]
        launch(
            kernel,
            (runs * self.shared * (block // config.rows), 1, 1),
            (*self.inputs, *arrays, *map(aligned, view[1:]), *orders, *plan[:3], *parts)
            + (runs, plan.num_parts, self.shared, *self.sizes),
            _constants(self.kind, config, block, other, even),
            (self.kind, config, block, other, even, tuple([x is None for x in (*arrays, *orders, *parts)])),
        )

    def join(
        self, kernel: Any, owner: Blocks, plan: Schedule, arrays: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Launch over the rows that were cut, a few places of a block to a program."""
        if plan.hubs is None:
            return
        hubs, block = plan.hubs.row.shape[0], owner.block_targets
        sizes = hubs, self.shared, owner.target_blocks, self.heads, owner.num_targets, owner.target_places
        launch(
            kernel,
            (hubs * self.shared * (block // _MERGE_ROWS), 1, 1),
            (*arrays, owner.target, *plan.hubs, *sizes),
            {**constants, "BM": block, "M": _MERGE_ROWS, "B": _MERGE_PARTS, "LEADING": owner.leading},
            (self.kind, block, owner.target is None, len(arrays), arrays[-1] is None),
        )


def forward(
    blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """See the API. Returns output and log-sum-exp."""
    with guard(q):
        call = _Call(blocks, q, k, v, scale, clamp)
        plan = plan_of(blocks.by_target, _CHUNK)
        out = v.new_empty((*q.shape[:3], call.v_width))
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        parts = call.parts(plan, 2, blocks.block_targets), call.parts(plan, blocks.block_targets, call.v_width)
        call.run(attend_kernel, blocks, plan, (out, lse), parts)
        widths = {"DV": call.v_width, "DVP": padded(call.v_width)}
        call.join(merge_kernel, blocks, plan, (out, lse, *parts), widths)
    return out, lse


def backward(
    blocks: Blocks,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    clamp: float | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    with guard(q):
        grad_out = aligned(grad_out.contiguous())
        grad_lse = None if grad_lse is None else aligned(grad_lse.contiguous())
        call = _Call(blocks, q, k, v, scale, clamp)
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        block, other = blocks.block_targets, blocks.block_sources
        stats = lse.new_empty((q.shape[0] * q.shape[2], blocks.target_blocks * block, 4))
        widths = {"DX": call.width, "DXP": padded(call.width), "DY": call.v_width, "DYP": padded(call.v_width)}

        plan = plan_of(blocks.by_target, _CHUNK)
        part_q = call.parts(plan, block, call.width)
        call.run(row_kernel, blocks, plan, (out, lse, grad_out, grad_lse, stats, grad_q), (part_q,))
        call.join(sum_kernel, blocks, plan, (grad_q, part_q, None, None), widths)
        del part_q  # its room serves the next pass

        plan = plan_of(blocks.by_source, _CHUNK)
        parts = call.parts(plan, other, call.width), call.parts(plan, other, call.v_width)
        call.run(column_kernel, blocks.T, plan, (grad_out, stats, grad_k, grad_v), parts)
        call.join(sum_kernel, blocks.T, plan, (grad_k, parts[0], grad_v, parts[1]), widths)
    return grad_q, grad_k, grad_v
