"""Both sorted views of a list of edges in three launches and two sorts: training on batches makes them every step."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._schedule import HUB, SHORT
from graphattn_kernels._triton import guard, launch
from graphattn_kernels.structure import Structure, View

__all__ = ["SortedEdges", "sort_edges"]

_BLOCK = 256
_WIDE = 2**31 - 1


class SortedEdges(NamedTuple):
    """What :func:`sort_edges` gives."""

    structure: Structure
    transpose_id: Tensor
    """``[E]``: where the target's view holds each edge of the source's view."""
    numbers: Tensor
    """0, 1, ... up to the number of targets or of sources, whichever are more."""
    facts: Tensor
    """int32 ``[3]``: 1 where some index is out of range (the views are then of no use, though nothing outside of any
    memory was read or written); how long the longest row of targets and of sources is: 0: at most
    :data:`~graphattn_kernels._schedule.SHORT` edges, 1: at most :data:`~graphattn_kernels._schedule.HUB`, 2: more."""


def sort_edges(edge_index: Tensor, num_targets: int, num_sources: int, dtype: torch.dtype) -> SortedEdges:
    """Sort edges by target, then source, then place in the list; and by source, then target, then place.

    Nothing waits for the device.

    Args:
        edge_index: Integer ``[2, E]``, sources and targets, E > 0.
        num_targets: T.
        num_sources: S.
        dtype: Of the results.
    """
    edges, longer = edge_index.shape[1], max(num_targets, num_sources)
    factor = max(num_sources, 1)
    small = (num_targets + 1) * factor < _WIDE
    device = edge_index.device
    key = torch.empty(edges, dtype=torch.int32 if small else torch.int64, device=device)
    facts = torch.empty(3, dtype=torch.int32, device=device)
    # One piece of memory for six arrays, each of which begins at 16 bytes.
    whole = torch.empty((6, -(-edges // 4) * 4), dtype=dtype, device=device)
    source, target, edge, t_of_s, edge_of_s, transpose = whole[:, :edges].unbind()
    t_ptr, s_ptr, numbers = (
        torch.empty(size, dtype=dtype, device=device) for size in (num_targets + 1, num_sources + 1, longer)
    )
    numbers_given = edges, num_targets, num_sources, *edge_index.stride()
    kind = (
        *(edge_index.get_device(), edge_index.dtype, key.dtype, dtype),
        # Each by itself: a compiled kernel is called with the widths it was compiled for.
        None if max(numbers_given) < _WIDE else tuple([n > _WIDE for n in numbers_given]),
    )
    steps = edges.bit_length()
    with guard(edge_index):
        args: tuple[Any, ...] = (edge_index, key, facts, edges, *edge_index.stride(), num_targets, num_sources)
        launch(_key_kernel, (-(-edges // _BLOCK), 1, 1), args, {"B": _BLOCK}, kind)
        key, order = torch.sort(key, stable=True)
        args = (key, order, t_ptr, source, target, edge, numbers, facts, edges, num_targets, factor, longer, steps)
        grid = -(-max(edges, longer + 1) // _BLOCK), 1, 1
        constants = {"SHORT": SHORT, "HUB": HUB, "B": _BLOCK}
        launch(_by_target_kernel, grid, args, constants, kind)
        # Sorted by target already, so a stable sort by source alone sorts by (source, target).
        owner, order = torch.sort(source, stable=True)
        args = (owner, order, target, edge, s_ptr, t_of_s, edge_of_s, transpose, facts, edges, num_sources, steps)
        launch(_by_source_kernel, grid, args, constants, kind)
    by_target, by_source = View(t_ptr, source, target, edge), View(s_ptr, t_of_s, owner, edge_of_s)
    return SortedEdges(Structure(by_target, by_source), transpose, numbers, facts)


_KEY_POINTERS = ["EDGES", "KEY", "FACTS"]
_POINTERS = ["KEY", "ORDER", "TARGET", "EDGE", "PTR", "SOURCE", "NUMBERS", "FACTS"]
_SOURCE_POINTERS = ["KEY", "ORDER", "TARGET", "EDGE", "PTR", "T_OF_S", "EDGE_OF_S", "TRANSPOSE", "FACTS"]


@triton.jit(
    do_not_specialize=["edges", "row_stride", "edge_stride", "num_targets", "num_sources"],
    do_not_specialize_on_alignment=_KEY_POINTERS,
)
def _key_kernel(EDGES, KEY, FACTS, edges, row_stride, edge_stride, num_targets, num_sources, B: tl.constexpr):
    """KEY ``[E]``: target * S + source; behind all others where one of them is out of range."""
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    there = i < edges
    source = tl.load(EDGES + i * edge_stride, mask=there, other=0).to(tl.int64)
    target = tl.load(EDGES + row_stride + i * edge_stride, mask=there, other=0).to(tl.int64)
    valid = (source >= 0) & (source < num_sources) & (target >= 0) & (target < num_targets)
    factor = tl.maximum(num_sources, 1).to(tl.int64)
    key = tl.where(valid, target * factor + source, num_targets * factor)
    tl.store(KEY + i, key.to(KEY.dtype.element_ty), mask=there)
    if tl.program_id(0) == 0:
        three = tl.arange(0, 4)
        tl.store(FACTS + three, tl.zeros([4], tl.int32), mask=three < 3)


@triton.jit
def _first_not_below(KEY, x, edges, steps):
    """Where the first key that is not below ``x`` stands."""
    low = tl.zeros_like(x)
    high = low + edges
    for _ in range(steps):
        searching = low < high
        middle = (low + high) // 2
        below = tl.load(KEY + middle, mask=searching, other=0).to(tl.int64) < x
        low = tl.where(searching & below, middle + 1, low)
        high = tl.where(searching & (below == 0), middle, high)
    return low


@triton.jit
def _measure(FACT, KEY, i, row, edges, factor, SHORT: tl.constexpr, HUB: tl.constexpr):
    """Note whether a row goes on ``SHORT`` or ``HUB`` edges after edge ``i``."""
    short = tl.load(KEY + i + SHORT, mask=i + SHORT < edges, other=-1).to(tl.int64)
    far = tl.load(KEY + i + HUB, mask=i + HUB < edges, other=-1).to(tl.int64)
    goes_on = (i + SHORT < edges) & (short // factor == row)
    is_hub = (i + HUB < edges) & (far // factor == row)
    found = tl.max(goes_on.to(tl.int32) + is_hub.to(tl.int32), 0)
    if found > 0:
        tl.atomic_max(FACT, found)


@triton.jit(
    do_not_specialize=["edges", "num_targets", "factor", "longer", "steps"],
    do_not_specialize_on_alignment=_POINTERS,
)
def _by_target_kernel(
    KEY, ORDER, PTR, SOURCE, TARGET, EDGE, NUMBERS, FACTS, edges, num_targets, factor, longer, steps,
    SHORT: tl.constexpr, HUB: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The target's view from the sorted keys; some programs have rows only, some edges only."""
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    there = i < edges
    wide = tl.zeros_like(i) + factor
    key = tl.load(KEY + i, mask=there, other=0).to(tl.int64)
    target = key // wide
    tl.store(SOURCE + i, (key % wide).to(SOURCE.dtype.element_ty), mask=there)
    tl.store(TARGET + i, target.to(TARGET.dtype.element_ty), mask=there)
    tl.store(EDGE + i, tl.load(ORDER + i, mask=there, other=0).to(EDGE.dtype.element_ty), mask=there)
    tl.store(NUMBERS + i, i.to(NUMBERS.dtype.element_ty), mask=i < longer)
    # Beyond the last row, a search for the edges' end; not beyond any key, whatever is out of range.
    begin = _first_not_below(KEY, tl.minimum(i, num_targets) * wide, edges, steps)
    tl.store(PTR + i, begin.to(PTR.dtype.element_ty), mask=i <= num_targets)
    _measure(FACTS + 1, KEY, i, target, edges, wide, SHORT, HUB)
    is_last = there & (i == edges - 1)
    if tl.max((is_last & (target >= num_targets)).to(tl.int32), 0) > 0:
        tl.store(FACTS, 1)


@triton.jit(
    do_not_specialize=["edges", "num_sources", "steps"],
    do_not_specialize_on_alignment=_SOURCE_POINTERS,
)
def _by_source_kernel(
    KEY, ORDER, TARGET, EDGE, PTR, T_OF_S, EDGE_OF_S, TRANSPOSE, FACTS, edges, num_sources, steps,
    SHORT: tl.constexpr, HUB: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The source's view from the sorted sources KEY and the target's view."""
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    there = i < edges
    place = tl.load(ORDER + i, mask=there, other=0)
    tl.store(TRANSPOSE + i, place.to(TRANSPOSE.dtype.element_ty), mask=there)
    tl.store(T_OF_S + i, tl.load(TARGET + place, mask=there, other=0), mask=there)
    tl.store(EDGE_OF_S + i, tl.load(EDGE + place, mask=there, other=0), mask=there)
    begin = _first_not_below(KEY, tl.minimum(i, num_sources), edges, steps)
    tl.store(PTR + i, begin.to(PTR.dtype.element_ty), mask=i <= num_sources)
    source = tl.load(KEY + i, mask=there, other=0).to(tl.int64)
    _measure(FACTS + 2, KEY, i, source, edges, tl.zeros_like(i) + 1, SHORT, HUB)
