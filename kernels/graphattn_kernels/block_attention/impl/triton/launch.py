"""Tile sizes and launches. No autotuning: sizes stand in a table, so only the first call is slow."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._schedule import Schedule
from graphattn_kernels._triton import aligned, guard, is_dense, launch, number_of, padded, planned, strides_of
from graphattn_kernels.block_attention.impl.triton.backward import column_kernel, row_kernel, sum_kernel
from graphattn_kernels.block_attention.impl.triton.forward import attend_kernel, merge_kernel
from graphattn_kernels.block_attention.impl.triton.plan import plan_of
from graphattn_kernels.blocks import Blocks, BlockView

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


class _Pass(NamedTuple):
    """A kernel over the runs of one side."""

    kernel: Any
    programs: int
    """For each run."""
    constants: dict[str, Any]
    """The constexpr arguments."""


class _Plan(NamedTuple):
    """All that shapes decide, worked out once for each: where tensors are small, the host is what takes long."""

    kind: int
    """Stands for what the kernels are compiled for, but for the arguments of a call that may be ``None``."""
    dense: bool
    """Whether rows are, of every tensor."""
    shared: int
    """Batch entries and heads to a graph."""
    sizes: tuple[int, ...]
    """Arguments of every pass."""
    out: tuple[int, ...]
    lse: tuple[int, ...]
    stats: tuple[int, ...]
    """Shapes of what the forward pass returns, and of what the row pass leaves to the column pass."""
    attend: _Pass
    row: _Pass
    column: _Pass
    merged: dict[str, int]
    summed: dict[str, int]
    """The widths that those who join parts are compiled for."""


@lru_cache(1024)
def _plan_of(dtype: torch.dtype, device: int, layouts: Any, graph: tuple[Any, ...], clamped: bool, tf32: bool) -> _Plan:
    (q_shape, _), (k_shape, _), (v_shape, _) = layouts
    target_places, source_places, num_targets, num_sources, block_targets, block_sources, leading = graph
    batch, _, heads, d = q_shape
    dv = v_shape[3]
    copies = (batch if "b" in leading else 1) * (heads if "h" in leading else 1)
    shared = batch * heads // max(1, copies)
    strides, align = strides_of(dtype, *layouts)
    widths = {"D": d, "DV": dv, "DP": padded(d), "DVP": padded(dv)}

    def over(kernel: Any, block: int, other: int, even: bool) -> _Pass:
        config = configure(kernel, block, other, max(padded(d), padded(dv)), dtype)
        constants = {
            **widths,
            "BM": block,
            "BN": other,
            "M": config.rows,
            "N": config.columns,
            "LEADING": leading,
            "CLAMPED": clamped,
            "EVEN": even,  # whether every place of every tile holds somebody
            "ALIGN": align,
            "PRECISION": "tf32" if tf32 else "ieee",
            "num_warps": config.warps,
            "num_stages": config.stages,
        } | ({} if config.registers is None else {"maxnreg": config.registers})
        return _Pass(kernel, shared * (block // config.rows), constants)

    even = source_places is None and num_sources % block_sources == 0
    attend, row = (over(kernel, block_targets, block_sources, even) for kernel in (attend_kernel, row_kernel))
    even = target_places is None and num_targets % block_targets == 0
    column = over(column_kernel, block_sources, block_targets, even)
    orders = target_places is None, source_places is None
    wide = tuple([n >= 2**31 for n in strides])
    kind = dtype, device, wide, orders, *[tuple(x.constants.items()) for x in (attend, row, column)]
    places = num_targets if target_places is None else target_places
    others = num_sources if source_places is None else source_places
    rows, columns = -(-places // block_targets), -(-others // block_sources)
    return _Plan(
        number_of(kind),
        all(is_dense(*layout) for layout in layouts),
        shared,
        (rows, columns, heads, num_targets, num_sources, places, others, *strides),
        (*q_shape[:3], dv),
        tuple(q_shape[:3]),
        (batch * heads, rows * block_targets, 4),
        *(attend, row, column),
        {"DV": dv, "DVP": padded(dv)},
        {"DX": d, "DXP": padded(d), "DY": dv, "DYP": padded(dv)},
    )


class _Call:
    """What the launches of a call have in common."""

    def __init__(self, blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None) -> None:
        if clamp is None and scale <= 0.0:  # the kernels' short way needs a positive scale
            clamp = float("inf")
        target, source, *sizes = blocks[2:]
        places = None if target is None else target.shape[0], None if source is None else source.shape[0]
        tf32 = q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        rest = (*places, *sizes), clamp is not None, tf32
        self.plan, self.inputs = planned(_plan_of, (q, k, v), *rest)
        self.orders = None if target is None else aligned(target), None if source is None else aligned(source)
        self.options = float(scale), float(clamp or 0.0)  # Triton compiles for ints, even for which

    def parts(self, schedule: Schedule, *shapes: tuple[int, ...]) -> tuple[Tensor | None, ...]:
        """Room for what the parts of long rows give."""
        if schedule.hubs is None:
            return (None,) * len(shapes)
        count = schedule.num_parts, self.plan.shared
        return tuple([self.inputs[0].new_empty((*count, *shape), dtype=torch.float32) for shape in shapes])

    def run(
        self,
        which: _Pass,
        view: BlockView,
        schedule: Schedule,
        arrays: tuple[Any, ...],
        parts: tuple[Any, ...],
        has_all: bool = True,
    ) -> None:
        """Launch over the runs of a view; ``has_all``: no array is ``None``."""
        plan = self.plan
        row, begin, end, num_parts, hubs = schedule
        _, index, slot, mask = view
        if (index.data_ptr() | slot.data_ptr() | mask.data_ptr()) % 16:
            index, slot, mask = aligned(index), aligned(slot), aligned(mask)
        runs = row.shape[0]
        launch(
            which.kernel,
            (runs * which.programs, 1, 1),
            (*self.inputs, *arrays, index, slot, mask, *self.orders, row, begin, end, *parts)
            + (runs, num_parts, plan.shared, *plan.sizes, *self.options),
            which.constants,
            (plan.kind, hubs is None, has_all),
        )

    def join(
        self, kernel: Any, owner: Blocks, schedule: Schedule, arrays: tuple[Any, ...], widths: dict[str, int]
    ) -> None:
        """Launch over the rows that were cut, a few places of a block to a program."""
        hubs, block, shared = schedule.hubs, owner.block_targets, self.plan.shared
        if hubs is None:
            return
        order = None if owner.target is None else aligned(owner.target)
        count, heads = hubs.row.shape[0], self.plan.sizes[2]
        sizes = count, shared, owner.target_blocks, heads, owner.num_targets, owner.target_places
        launch(
            kernel,
            (count * shared * (block // _MERGE_ROWS), 1, 1),
            (*arrays, order, *hubs, *sizes),
            {**widths, "BM": block, "M": _MERGE_ROWS, "B": _MERGE_PARTS, "LEADING": owner.leading},
            (self.plan.kind, block, order is None, len(arrays), arrays[-1] is None),
        )


def forward(
    blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """See the API. Returns output and log-sum-exp."""
    with guard(q):
        call = _Call(blocks, q, k, v, scale, clamp)
        plan, block = call.plan, blocks.block_targets
        schedule = plan_of(blocks.by_target, _CHUNK)
        out, lse = v.new_empty(plan.out), q.new_empty(plan.lse, dtype=torch.float32)
        parts = call.parts(schedule, (2, block), (block, v.shape[3]))
        call.run(plan.attend, blocks.by_target, schedule, (out, lse), parts)
        call.join(merge_kernel, blocks, schedule, (out, lse, *parts), plan.merged)
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
        out, lse, grad_out = [aligned(x.contiguous()) for x in (out, lse, grad_out)]
        grad_lse = None if grad_lse is None else aligned(grad_lse.contiguous())
        call = _Call(blocks, q, k, v, scale, clamp)
        plan, block, other = call.plan, blocks.block_targets, blocks.block_sources
        grad_q, grad_k, grad_v = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        stats = lse.new_empty(plan.stats)

        schedule = plan_of(blocks.by_target, _CHUNK)
        parts = call.parts(schedule, (block, q.shape[3]))
        arrays: tuple[Any, ...] = out, lse, grad_out, grad_lse, stats, grad_q
        call.run(plan.row, blocks.by_target, schedule, arrays, parts, grad_lse is not None)
        call.join(sum_kernel, blocks, schedule, (grad_q, *parts, None, None), plan.summed)
        del parts  # its room serves the next pass

        schedule = plan_of(blocks.by_source, _CHUNK)
        parts = call.parts(schedule, (other, q.shape[3]), (other, v.shape[3]))
        call.run(plan.column, blocks.by_source, schedule, (grad_out, stats, grad_k, grad_v), parts)
        call.join(sum_kernel, blocks.T, schedule, (grad_k, parts[0], grad_v, parts[1]), plan.summed)
    return grad_q, grad_k, grad_v
