"""Which rows a program takes: sorted by degree so that neighbours end together, hubs cut into parts.

Everything is computed on the device. Array sizes are bounds in N and E, so nothing waits for the host and a schedule
can be made inside a CUDA graph.
"""

from __future__ import annotations

import weakref
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn_kernels.structure import View

__all__ = ["HUB", "SHORT", "Hubs", "Schedule", "as_they_stand", "chunk_size", "make_schedule", "schedule_of"]

_HAS_TRITON = find_spec("triton") is not None

HUB = 256  # edges of a row from which it is cut
SHORT = 32  # edges up to which rows of a small graph need no order: none keeps the others waiting for long
_SMALL = 1 << 17  # edges of a graph that takes the host longer than the device


class Hubs(NamedTuple):
    """The rows that are longer than a chunk, and where their parts stand; arrays are longer than what is used."""

    row: Tensor
    """``[hubs]``: the row of each hub."""
    part_ptr: Tensor
    """``[hubs + 1]``: hub j is cut into the parts ``part_ptr[j]:part_ptr[j + 1]``."""
    num_hubs: Tensor
    """``[]``: how many entries are hubs."""


class Schedule(NamedTuple):
    """Runs of edges, the longest first: ``num_parts`` parts of hubs, then every row that is no hub."""

    row: Tensor
    """``[num_parts + N]``: whose run it is; -1: nothing to do."""
    begin: Tensor
    """``[num_parts + N]``: its first edge."""
    end: Tensor
    """``[num_parts + N]``: the edge after its last."""
    num_parts: int
    """How many entries in front are parts (a bound: those not used have row -1)."""
    hubs: Hubs | None
    """``None`` where E says that no row can be a hub."""


def chunk_size(num_edges: int) -> int:
    """Edges in a part of a hub: few enough that no program runs much longer than the others, and more where there
    are so many edges that the parts (bounded by ``2 E / chunk``) would need much memory."""
    return HUB if num_edges < 1 << 24 else 2048


def make_schedule(ptr: Tensor, num_edges: int, chunk: int) -> Schedule:
    """Sort rows by degree, longest first, and cut those with more than ``chunk`` edges.

    A row of d > chunk edges has ``ceil(d / chunk) <= 2 d / (chunk + 1)`` parts, so there are at most
    ``2 E // (chunk + 1)`` parts of ``E // (chunk + 1)`` hubs.

    Args:
        ptr: ``[N + 1]``.
        num_edges: E.
        chunk: Longest run.
    """
    if ptr.is_cuda and _HAS_TRITON:
        from graphattn_kernels import _schedule_triton

        return _schedule_triton.make_schedule(ptr, num_edges, chunk)
    degree = ptr.diff()
    # Degrees beyond the chunk need no order among themselves: a narrow key makes a short radix sort.
    key = degree.clamp(max=chunk + 1).to(torch.int16 if chunk < 2**15 - 1 else torch.int32)
    order = key.argsort(descending=True, stable=True)
    begin, end = ptr[:-1].index_select(0, order), ptr[1:].index_select(0, order)
    row = order.to(ptr.dtype)
    most_hubs = min(num_edges // (chunk + 1), degree.shape[0])
    if most_hubs == 0:
        return Schedule(row, begin, end, 0, None)

    num_parts = 2 * num_edges // (chunk + 1)
    first, last, hub_row = begin[:most_hubs], end[:most_hubs], row[:most_hubs].clone()
    length = last - first
    is_hub = length > chunk
    parts = ((length + (chunk - 1)) // chunk).masked_fill_(~is_hub, 0)
    part_ptr = torch.cat([parts.new_zeros(1), parts.cumsum(0, dtype=parts.dtype)])
    row[:most_hubs].masked_fill_(is_hub, -1)
    last_of_row = last.clone()
    last.copy_(torch.where(is_hub, first, last))

    part = torch.arange(num_parts, dtype=ptr.dtype, device=ptr.device)
    hub = torch.searchsorted(part_ptr[1:], part, right=True, out_int32=ptr.dtype == torch.int32)
    used = hub < most_hubs
    hub = hub.clamp_(max=most_hubs - 1)
    part_begin = first.index_select(0, hub) + (part - part_ptr.index_select(0, hub)) * chunk
    part_end = torch.minimum(part_begin + chunk, last_of_row.index_select(0, hub))
    return Schedule(
        torch.cat([hub_row.index_select(0, hub).masked_fill_(~used, -1), row]),
        torch.cat([part_begin, begin]),
        torch.cat([torch.where(used, part_end, part_begin), end]),
        num_parts,
        Hubs(hub_row, part_ptr, is_hub.sum()),
    )


class _Entry:
    """A schedule, and whether it has hubs at all: known as soon as the device has counted them."""

    def __init__(self, schedule: Schedule, chunk: int) -> None:
        self.schedule = schedule
        self.chunk = chunk
        self.count: Tensor | None = None
        self.counted: torch.cuda.Event | None = None
        if schedule.hubs is not None:
            self.count = schedule.hubs.num_hubs.to("cpu", non_blocking=True)
            if schedule.row.is_cuda:
                self.counted = torch.cuda.Event()
                self.counted.record()

    def latest(self) -> Schedule:
        """Without room for hubs once it is known, without waiting, that there are none; results do not differ."""
        count, plan = self.count, self.schedule  # looked at once: another thread may be done with them meanwhile
        if count is not None and (self.counted is None or self.counted.query()):
            if int(count) == 0:
                row, begin, end = (x[plan.num_parts :] for x in (plan.row, plan.begin, plan.end))
                self.schedule = Schedule(row, begin, end, 0, None)
            self.count = None
        return self.schedule


# One schedule for each pointer array that is alive; a Structure is immutable, so identity is enough. By the address of
# the object, because a WeakKeyDictionary takes as long as a kernel launch.
_schedules: dict[int, tuple[weakref.ref[Tensor], _Entry]] = {}


def schedule_of(view: View) -> Schedule:
    """The schedule of a view, made once."""
    ptr = view.ptr
    known, chunk = _schedules.get(id(ptr)), chunk_size(view.num_edges)
    found = known[1] if known is not None and known[0]() is ptr and known[1].chunk == chunk else None
    if found is not None and found.count is None:
        return found.schedule
    capturing = ptr.is_cuda and torch.cuda.is_current_stream_capturing()
    if found is not None:
        return found.schedule if capturing else found.latest()
    schedule = make_schedule(ptr, view.num_edges, chunk)
    if capturing:  # its memory belongs to the CUDA graph, so nobody else may use it
        return schedule
    entry = _Entry(schedule, chunk)
    _remember(ptr, entry)
    return entry.latest()


def as_they_stand(view: View, numbers: Tensor) -> None:
    """Let programs take the rows of a small graph in their own order: for who knows that none is longer than
    :data:`SHORT`.

    Args:
        view: The view.
        numbers: 0, 1, ... for each owner, or more of them.
    """
    if view.num_edges < _SMALL:
        ptr = view.ptr.detach()  # slices of the array itself would keep it alive, and it the schedule
        _remember(view.ptr, _Entry(Schedule(numbers[: view.num_owners], ptr[:-1], ptr[1:], 0, None), HUB))


def _remember(ptr: Tensor, entry: _Entry) -> None:
    key = id(ptr)
    _schedules[key] = weakref.ref(ptr, lambda _: _schedules.pop(key, None)), entry
