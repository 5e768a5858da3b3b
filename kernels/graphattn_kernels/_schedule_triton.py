"""A schedule in a handful of launches: a batch of small graphs gets a new one at every training step."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._schedule import Hubs, Schedule
from graphattn_kernels._triton import guard, launch

__all__ = ["make_schedule"]

_BLOCK = 256


def make_schedule(ptr: Tensor, num_edges: int, chunk: int) -> Schedule:
    """See :func:`graphattn_kernels._schedule.make_schedule`; the same arrays."""
    rows = ptr.shape[0] - 1
    most_hubs = min(num_edges // (chunk + 1), rows)
    num_parts = 2 * num_edges // (chunk + 1) if most_hubs else 0
    blocks = {"B": _BLOCK}
    with guard(ptr):
        # Degrees beyond the chunk need no order among themselves: a narrow key makes a short radix sort.
        key = ptr.new_empty(rows, dtype=torch.int16 if chunk < 2**15 - 1 else torch.int32)
        launch(_key_kernel, (-(-rows // _BLOCK), 1, 1), (ptr, key, rows, chunk), blocks)
        order = torch.sort(key, descending=True, stable=True).indices
        row, begin, end = ptr.new_empty((3, num_parts + rows)).unbind()
        hub_row, parts = (ptr.new_empty(most_hubs), ptr.new_empty(most_hubs + 1)) if most_hubs else (None, None)
        args = (ptr, order, row, begin, end, hub_row, parts, rows, num_parts, most_hubs, chunk)
        launch(_place_kernel, (-(-rows // _BLOCK), 1, 1), args, blocks)
        if hub_row is None or parts is None:
            return Schedule(row, begin, end, 0, None)
        part_ptr = parts.cumsum(0, dtype=parts.dtype)
        count = ptr.new_empty((), dtype=torch.int64)
        args = (ptr, hub_row, part_ptr, row, begin, end, count, num_parts, most_hubs, chunk, most_hubs.bit_length())
        launch(_parts_kernel, (max(1, -(-num_parts // _BLOCK)), 1, 1), args, blocks)
    return Schedule(row, begin, end, num_parts, Hubs(hub_row, part_ptr, count))


@triton.jit(do_not_specialize=["rows", "chunk"], do_not_specialize_on_alignment=["PTR"])
def _key_kernel(PTR, KEY, rows, chunk, B: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    there = i < rows
    degree = tl.load(PTR + i + 1, mask=there, other=0) - tl.load(PTR + i, mask=there, other=0)
    tl.store(KEY + i, tl.minimum(degree, chunk + 1).to(KEY.dtype.element_ty), mask=there)


_RUNTIME = ["rows", "num_parts", "most_hubs", "chunk", "steps"]
_UNALIGNED = ["PTR", "ROW", "BEGIN", "END", "HUB_ROW", "PARTS", "PART_PTR"]


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_UNALIGNED)
def _place_kernel(
    PTR, ORDER, ROW, BEGIN, END, HUB_ROW, PARTS, rows, num_parts, most_hubs, chunk, B: tl.constexpr
):  # fmt: skip
    """Every row behind the parts, longest first; hubs leave an empty run there and the number of their parts."""
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    there = i < rows
    row = tl.load(ORDER + i, mask=there, other=0)
    begin = tl.load(PTR + row, mask=there, other=0)
    end = tl.load(PTR + row + 1, mask=there, other=0)
    length = end - begin
    is_hub = length > chunk
    tl.store(ROW + num_parts + i, tl.where(is_hub, -1, row).to(begin.dtype), mask=there)
    tl.store(BEGIN + num_parts + i, begin, mask=there)
    tl.store(END + num_parts + i, tl.where(is_hub, begin, end), mask=there)
    if PARTS is not None:
        first = there & (i < most_hubs)
        tl.store(HUB_ROW + i, row.to(begin.dtype), mask=first)
        count = tl.where(is_hub, (length + (chunk - 1)) // chunk, 0)
        tl.store(PARTS + i + 1, count.to(begin.dtype), mask=first)
        tl.store(PARTS + i, tl.zeros_like(begin), mask=there & (i == 0))


@triton.jit
def _last_not_above(PART_PTR, x, most_hubs, steps):
    """The last hub whose first part is not after ``x``; of several that begin there, the last."""
    low = tl.zeros_like(x)
    high = low + most_hubs
    for _ in range(steps):
        middle = (low + high) // 2
        right = tl.load(PART_PTR + middle) <= x
        searching = high - low > 1
        low = tl.where(searching & right, middle, low)
        high = tl.where(searching & (right == 0), middle, high)
    return low


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_UNALIGNED)
def _parts_kernel(
    PTR, HUB_ROW, PART_PTR, ROW, BEGIN, END, COUNT, num_parts, most_hubs, chunk, steps, B: tl.constexpr
):  # fmt: skip
    """The runs of the parts, in front."""
    part = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    there = part < num_parts
    total = tl.load(PART_PTR + most_hubs)
    used = part < total
    hub = _last_not_above(PART_PTR, tl.where(used, part, 0), most_hubs, steps)
    row = tl.load(HUB_ROW + hub)
    begin = tl.load(PTR + row) + (part - tl.load(PART_PTR + hub)) * chunk
    end = tl.minimum(begin + chunk, tl.load(PTR + row + 1))
    tl.store(ROW + part, tl.where(used, row, -1), mask=there)
    tl.store(BEGIN + part, tl.where(used, begin, 0).to(row.dtype), mask=there)
    tl.store(END + part, tl.where(used, end, 0).to(row.dtype), mask=there)
    if tl.program_id(0) == 0:
        last = _last_not_above(PART_PTR, tl.zeros([1], tl.int64) + tl.maximum(total - 1, 0), most_hubs, steps)
        tl.store(COUNT + tl.arange(0, 1), tl.where(total > 0, last + 1, 0))
