"""Tile sizes and launches. No autotuning: sizes stand in a table, so only the first call is slow."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._triton import (
    aligned,
    chained,
    guard,
    is_dense,
    launch,
    next_power_of_2,
    number_of,
    padded,
    planned,
    strides_of,
)
from graphattn_kernels.list_attention.impl.triton.backward import column_kernel, row_kernel, sum_kernel
from graphattn_kernels.list_attention.impl.triton.ends import strip_ends
from graphattn_kernels.list_attention.impl.triton.forward import attend_kernel
from graphattn_kernels.list_attention.impl.triton.transpose import transpose
from graphattn_kernels.lists import SourceLists

__all__ = ["Config", "backward", "configure", "forward"]


class _Sums(NamedTuple):
    """How the gradients of entries are summed."""

    numbers: int
    """Of one sum, that a program holds."""
    parts: int
    """Added at a time."""
    warps: int


# 10 % of 4,096 and of 16,384 keys take 24 and 231 us on an H200, by a profiler. At 4,096, one part at a time takes 28
# us in programs of one warp and 36 of two, four parts 27. Of disjoint lists, a source has one part.
_SUMS, _SUMS_OF_ONE = _Sums(512, 2, 2), _Sums(256, 1, 1)


class Config(NamedTuple):
    """How a kernel runs."""

    rows: int
    """Targets of a program, or of a step in the column pass."""
    columns: int
    """Entries of a list of a step, or of a program in the column pass."""
    warps: int
    stages: int
    registers: int | None = None
    """A cap for each thread: more programs at a time hide more latency."""


# For each kernel, the sizes up to so many bytes of a row (of one head, padded to a power of 2). Chosen by what the
# compiler says for compute capability 9.0 (nothing spilled where half types are used); those of 128 bytes the fastest
# of a dozen on an H200 for lists of 10 % of 4,096 to 16,384 keys. The cap gives 4 programs a multiprocessor, not 3.
_HALF = {
    attend_kernel: {128: Config(128, 64, 8, 2, 128), 256: Config(128, 64, 8, 2), 512: Config(64, 32, 4, 2)},
    row_kernel: {128: Config(64, 64, 4, 3), 256: Config(64, 32, 4, 2), 512: Config(32, 32, 4, 1)},
    column_kernel: {128: Config(64, 64, 4, 2), 256: Config(64, 64, 8, 2), 512: Config(32, 32, 4, 1)},
}
# Without tensor cores (unless tf32 is allowed), products take twice the registers.
_FLOAT32 = {
    attend_kernel: {128: Config(64, 32, 4, 2), 256: Config(64, 32, 8, 2)},
    row_kernel: {128: Config(32, 32, 4, 1), 256: Config(32, 32, 8, 1)},
    column_kernel: {128: Config(32, 32, 4, 1)},
}
_WIDEST = Config(32, 16, 8, 1)


@lru_cache(256)
def configure(kernel: Any, block: int, width: int, dtype: torch.dtype) -> Config:
    """The sizes for a kernel, a block of targets, and the padded channels of one head."""
    table = (_FLOAT32 if dtype == torch.float32 else _HALF)[kernel]
    config = next((config for limit, config in table.items() if width * dtype.itemsize <= limit), _WIDEST)
    rows = min(config.rows, max(16, next_power_of_2(block)))
    return config._replace(rows=rows, warps=max(4, config.warps * rows // config.rows))


class _Pass(NamedTuple):
    """A kernel, and what of its launch is known before its tensors."""

    kernel: Any
    programs: int
    ints: tuple[int, ...]
    """Its first whole numbers."""
    constants: dict[str, Any]
    """The constexpr arguments."""
    rows: int = 0
    strips: int = 0
    """Targets of a program, and programs for each block, where programs have targets."""


class _Plan(NamedTuple):
    """All that shapes decide, worked out once for each: where tensors are small, the host is what takes long."""

    kind: int
    """Stands for what the kernels are compiled for, but for the arguments of a call that may be ``None``."""
    dense: bool
    """Whether rows are, of every tensor."""
    far: bool
    """Whether sources are so far apart that 32 bits do not hold their offsets."""
    sizes: tuple[int, ...]
    """Arguments of the passes over lists."""
    out: tuple[int, ...]
    lse: tuple[int, ...]
    part_k: tuple[int, ...]
    part_v: tuple[int, ...]
    """Shapes of what the forward pass returns, and of the gradients of gathered rows."""
    attend: _Pass
    row: _Pass
    column: _Pass | None
    """``None``: the row pass gives the gradients of gathered rows."""
    sum: _Pass


@lru_cache(1024)
def _plan_of(
    dtype: torch.dtype, device: int, layouts: Any, arrays: Any, graph: tuple[Any, ...], clamped: bool, tf32: bool
) -> _Plan:
    (q_shape, _), (k_shape, _), (v_shape, _) = layouts
    (_, blocks, room), target, types = arrays
    num_targets, num_sources, block, leading, causal, own, disjoint = graph
    (batch, _, heads, d), dv = q_shape, v_shape[3]
    strides, align = strides_of(dtype, *layouts)
    width = max(padded(d), padded(dv))
    widths = {"D": d, "DV": dv, "DP": padded(d), "DVP": padded(dv)}
    stride = target[1] if target is not None and target[0] > 1 else 0

    def constants(config: Config) -> dict[str, Any]:
        return {
            **widths,
            "M": config.rows,
            "N": config.columns,
            "LEADING": leading,
            "READS": ("before" if own else "until") if causal else "others" if own else None,
            "CLAMPED": clamped,
            "ALIGN": align,
            "PRECISION": "tf32" if tf32 else "ieee",
            "CHAINED": chained(device),
            "num_warps": config.warps,
            "num_stages": config.stages,
        } | ({} if config.registers is None else {"maxnreg": config.registers})

    def by_rows(kernel: Any) -> _Pass:
        config = configure(kernel, block, width, dtype)
        strips = -(-block // config.rows)
        ints = blocks, block, strips
        return _Pass(kernel, batch * heads * blocks * strips, ints, constants(config), config.rows, strips)

    def by_entries() -> _Pass:
        config = configure(column_kernel, block, width, dtype)
        chunks = -(-room // config.columns)
        ints = chunks, blocks, block
        return _Pass(column_kernel, batch * heads * blocks * chunks, ints, constants(config))

    attend, row = by_rows(attend_kernel), by_rows(row_kernel)
    column = None if row.strips <= 1 else by_entries()
    sums = _SUMS_OF_ONE if disjoint else _SUMS
    sources = max(1, sums.numbers // width)
    chunks = -(-num_sources // sources)
    ints = chunks, blocks, room, 1 if disjoint else blocks, num_sources, heads
    sizes = {"N": sources, "R": sums.parts, "LEADING": leading, "CHAINED": chained(device)}
    total = _Pass(
        sum_kernel, batch * heads * chunks, ints, {**widths, **sizes, "num_warps": sums.warps, "num_stages": 2}
    )
    kinds = [None if x is None else tuple(x.constants.items()) for x in (attend, row, column, total)]
    kind = dtype, device, types, tuple([n >= 2**31 for n in strides]), *kinds
    return _Plan(
        number_of(kind),
        all(is_dense(*layout) for layout in layouts),
        types[0] == torch.int32 and num_sources * max(strides[4], strides[7]) >= 2**31,
        (room, num_targets, num_sources, stride, heads, *strides),
        (*q_shape[:3], dv),
        tuple(q_shape[:3]),
        (batch * heads, blocks, room, d),
        (batch * heads, blocks, room, dv),
        *(attend, row, column, total),
    )


class _Call:
    """What the launches of a call have in common."""

    def __init__(self, lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None) -> None:
        if clamp is None and scale <= 0.0:  # the kernels' short way needs a positive scale
            clamp = float("inf")
        (index, length, target), graph = lists[:3], lists[3:]
        index = aligned(index.contiguous())
        length, target = [None if x is None else aligned(x.contiguous()) for x in (length, target)]
        tf32 = q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        types = index.dtype, None if length is None else length.dtype, None if target is None else target.dtype
        arrays = index.shape, None if target is None else target.shape, types
        rest = arrays, graph, clamp is not None, tf32
        self.plan, self.inputs = planned(_plan_of, (q, k, v), *rest)
        if self.plan.far:
            index, arrays = index.long(), (*arrays[:2], (torch.int64, *types[1:]))
            self.plan, _ = planned(_plan_of, self.inputs, arrays, *rest[1:])
        self.lists = SourceLists(index, length, target, *graph)
        self.options = float(scale), float(clamp or 0.0)  # Triton compiles for ints, even for which

    def ends(self, which: _Pass) -> Tensor | None:
        """int32 ``[copies, blocks, strips]``: where each strip of targets may stop; ``None``: nowhere."""
        lists, strips = self.lists, which.strips
        if lists.causal:
            return strip_ends(lists, which.rows, strips)
        if lists.length is None or strips == 1:
            return lists.length
        return lists.length.unsqueeze(-1).expand(-1, -1, strips).contiguous()

    def run(self, which: _Pass, arrays: tuple[Any, ...], ends: Tensor | None, has_lse: bool = True) -> None:
        """Launch a pass over the lists, which end there; ``has_lse``: the log-sum-exp has a gradient."""
        plan, (index, _, target, *_) = self.plan, self.lists
        launch(
            which.kernel,
            (which.programs, 1, 1),
            (*self.inputs, *arrays, index, ends, target, *which.ints, *plan.sizes, *self.options),
            which.constants,
            (plan.kind, ends is None, has_lse),
        )


def forward(
    lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """See the API, but for ``own``, which is left to it. Returns output and log-sum-exp."""
    with guard(q):
        call = _Call(lists, q, k, v, scale, clamp)
        plan = call.plan
        if lists.target is None:
            out, lse = v.new_empty(plan.out), q.new_empty(plan.lse, dtype=torch.float32)
        else:  # somebody may stand nowhere
            out, lse = v.new_zeros(plan.out), q.new_full(plan.lse, float("-inf"), dtype=torch.float32)
        call.run(plan.attend, (out, lse), call.ends(plan.attend))
    return out, lse


def backward(
    lists: SourceLists,
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
        call = _Call(lists, q, k, v, scale, clamp)
        out, lse, grad_out = [aligned(x.contiguous()) for x in (out, lse, grad_out)]
        grad_lse = None if grad_lse is None else aligned(grad_lse.contiguous())
        plan, written, has_lse = call.plan, call.lists, grad_lse is not None
        grad_q, grad_k, grad_v = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        if lists.target is not None:
            grad_q.zero_()
        saved = out, lse, grad_out, grad_lse
        parts = k.new_empty(plan.part_k), v.new_empty(plan.part_v)
        ends = call.ends(plan.row)
        if plan.column is None:
            call.run(plan.row, (*saved, grad_q, *parts), ends, has_lse)
            if ends is not None:  # entries that stand after all targets of their block have no part
                written = written._replace(length=ends)
        else:
            call.run(plan.row, (*saved, grad_q, None, None), ends, has_lse)
            call.run(plan.column, (*saved, *parts), written.length, has_lse)
        count, entry = transpose(written)
        launch(
            sum_kernel,
            (plan.sum.programs, 1, 1),
            (grad_k, grad_v, *parts, count, entry, *plan.sum.ints),
            plan.sum.constants,
            (plan.kind,),
        )
    return grad_q, grad_k, grad_v
