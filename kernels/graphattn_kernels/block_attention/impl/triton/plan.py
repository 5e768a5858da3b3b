"""The runs of tiles of a block view, made once: rows longest first, long ones cut into parts."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from graphattn_kernels._schedule import Hubs, Schedule, make_schedule
from graphattn_kernels.blocks import BlockView

__all__ = ["plan_of", "remember_even"]


class _Entry:
    """A schedule whose room for parts, a bound at first, shrinks to what is used once the device has counted it."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.counts: Tensor | None = None
        self.counted: torch.cuda.Event | None = None
        if schedule.hubs is not None:
            hubs = schedule.hubs
            self.counts = torch.stack([hubs.num_hubs, hubs.part_ptr[-1]]).to("cpu", non_blocking=True)
            if schedule.row.is_cuda:
                self.counted = torch.cuda.Event()
                self.counted.record()

    def latest(self) -> Schedule:
        counts, plan = self.counts, self.schedule  # looked at once: another thread may be done with them meanwhile
        if counts is not None and (self.counted is None or self.counted.query()):
            self.schedule = _trimmed(plan, *counts.tolist())
            self.counts = None
        return self.schedule


def _trimmed(plan: Schedule, num_hubs: int, num_parts: int) -> Schedule:
    """The same runs without those parts and hubs that do nothing; results do not differ."""
    if plan.hubs is None:  # by another thread
        return plan
    row, begin, end = (torch.cat([x[:num_parts], x[plan.num_parts :]]) for x in (plan.row, plan.begin, plan.end))
    hubs = Hubs(plan.hubs.row[:num_hubs], plan.hubs.part_ptr[: num_hubs + 1], plan.hubs.num_hubs)
    return Schedule(row, begin, end, num_parts, hubs if num_hubs else None)


# The schedules of each pointer array that is alive, by the address of the object (as in _schedule.py). Blocks are
# immutable, so identity is enough.
_plans: dict[int, tuple[weakref.ref[Tensor], dict[int, _Entry]]] = {}


def plan_of(view: BlockView, chunk: int) -> Schedule:
    """The schedule of a view with at most ``chunk`` tiles in a run; waits for nothing."""
    plans = _plans_of(view.ptr)
    entry = plans.get(chunk)
    if entry is not None and entry.counts is None:
        return entry.schedule
    capturing = view.ptr.is_cuda and torch.cuda.is_current_stream_capturing()
    if entry is None:
        schedule = make_schedule(view.ptr, view.num_tiles, chunk)
        if capturing:  # its memory belongs to the CUDA graph, so nobody else may use it
            return schedule
        entry = plans[chunk] = _Entry(schedule)
    return entry.schedule if capturing else entry.latest()


def _plans_of(ptr: Tensor) -> dict[int, _Entry]:
    key, known = id(ptr), _plans.get(id(ptr))
    if known is None or known[0]() is not ptr:
        known = _plans[key] = weakref.ref(ptr, lambda _: _plans.pop(key, None)), {}
    return known[1]


def remember_even(ptr: Tensor, chunk: int, length: int) -> None:
    """Let :func:`plan_of` know that each row of these pointers has ``length`` tiles: nothing is sorted, and no row is
    cut, for none is longer than the others."""
    row = torch.arange(ptr.shape[0] - 1, dtype=torch.int32, device=ptr.device)
    _plans_of(ptr)[chunk] = _Entry(Schedule(row, row * length, (row + 1) * length, 0, None))
