"""How rows are dealt to programs, and launches: two in each direction."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._members import WHOLE, Members
from graphattn_kernels._members_triton import num_slots
from graphattn_kernels._triton import aligned, dense_rows, guard, launch, next_power_of_2, number_of, strides_of
from graphattn_kernels.rank_one_attention.impl.triton.kernels import (
    grad_query_kernel,
    grad_source_kernel,
    mix_kernel,
    query_kernel,
    row_width,
)

__all__ = ["backward", "forward"]

_PROGRAMS = 512  # of a pass: as many as a large GPU holds at once, of these
_CHUNKS = 128  # of a member, at most: every program of the next pass adds their sums
_TILE = 4096  # numbers of an input that a program asks for at once
_JOINED = 4096  # numbers of sums that are added at once
_WARPS = 4


class _Side(NamedTuple):
    """Targets or sources of a member, and how they are dealt to programs."""

    size: int
    chunk: int
    slots: int


class _Plan(NamedTuple):
    """All that shapes decide, worked out once for each: where tensors are small, the host is what takes long."""

    kind: int
    """Stands for what the kernels are compiled for."""
    dense: bool
    """Whether channels are, in every tensor."""
    empty: bool
    """Whether there is nothing to sum, so that everything is zero."""
    members: int
    groups: int
    """Programs for each slot: groups of heads."""
    targets: _Side
    sources: _Side
    q_strides: tuple[int, ...]
    source_strides: tuple[int, ...]
    work: int
    """Numbers that programs of the forward pass leave to each other."""
    constants: dict[Any, dict[str, int]]
    """Of each kernel."""

    def run(self, kernel: Any, slots: int, args: tuple[Any, ...], *more: Any) -> None:
        """Launch a program for each slot and group of heads; ``more`` of what its kernel is compiled for."""
        launch(kernel, (slots * self.groups, 1, 1), args, self.constants[kernel.fn], (self.kind, *more))


def _prepared(q: Tensor, k: Tensor, v: Tensor, members: Members) -> tuple[Tensor, Tensor, Tensor, Members, _Plan]:
    """With addresses and strides that kernels take."""
    plan = _plan(q, k, v, members)
    if not plan.dense or (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16:
        q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        plan = _plan(q, k, v, members)
    if members != WHOLE:
        members = Members(*(None if x is None else aligned(x.contiguous()) for x in members))
    return q, k, v, members, plan


def _plan(q: Tensor, k: Tensor, v: Tensor, members: Members) -> _Plan:
    types = None if members == WHOLE else tuple([None if x is None else x.dtype for x in members])
    layouts = (q.shape, q.stride()), (k.shape, k.stride()), (v.shape, v.stride())
    return _plan_of(q.dtype, q.get_device(), layouts, types, members.count(q))


@lru_cache(1024)
def _plan_of(dtype: torch.dtype, device: int, layouts: Any, members: tuple[Any, ...] | None, count: int) -> _Plan:
    (q_shape, _), (k_shape, _), (v_shape, _) = layouts
    heads, d, dv = q_shape[2], q_shape[3], v_shape[3]
    empty = 0 in (count, q_shape[1], k_shape[1], heads, d, dv)
    dense = all(steps[3] == 1 or shape[3] == 1 for shape, steps in layouts)
    strides, align = strides_of(dtype, *layouts)
    group = _group(heads, min(d, dv) * dtype.itemsize)
    groups = -(-heads // group)
    dp, dvp = (next_power_of_2(max(1, n)) for n in (d, dv))
    rows = max(1, _TILE // (group * max(dp, dvp)))
    joined = max(1, min(32, _JOINED // (group * max(dp, dvp))))

    def side(size: int, ragged: bool) -> _Side:
        if empty:
            return _Side(size, 1, 0)
        chunks = min(_CHUNKS, -(-_PROGRAMS // (groups * (1 if ragged else count))))
        chunk = -(-size // chunks)
        chunk = -(-chunk // rows) * rows
        # The number of slots asks only whether there are pointers.
        return _Side(size, chunk, size // chunk + count if ragged else num_slots(None, count, size, chunk))

    launched = {"num_warps": _WARPS, "num_stages": 1}
    tile, join, hint = {"HB": group, "R": rows}, {"B": joined}, {"ALIGN": align}
    constants = {
        query_kernel.fn: {"D": d, "DV": dv, "DP": dp, **tile, **hint, **launched},
        mix_kernel.fn: {"D": d, "DV": dv, "DP": dp, "DVP": dvp, **tile, **join, **hint, **launched},
        grad_source_kernel.fn: {"D": d, "DV": dv, "DP": dp, "DVP": dvp, **tile, **hint, **launched},
        grad_query_kernel.fn: {"D": d, "DV": dv, "DP": dp, **tile, **join, **hint, **launched},
    }
    ragged = members is not None and members[2] is not None
    kind = dtype, device, d, dv, group, rows, joined, align, tuple([n >= 2**31 for n in strides]), members
    targets, sources = side(q_shape[1], ragged), side(k_shape[1], ragged)
    work = heads * (targets.slots * row_width(d) + sources.slots * row_width(dv))
    sides = targets, sources, strides[:3], strides[3:]
    return _Plan(number_of(kind), dense, empty, count, groups, *sides, work, constants)


def _group(heads: int, row_bytes: int) -> int:
    """Heads of a program: as many as make a cache line."""
    group, most = 1, next_power_of_2(max(1, heads))
    while group < most and group * row_bytes < 128:
        group *= 2
    return group


def forward(
    q: Tensor, k: Tensor, v: Tensor, members: Members, eps_q: float, eps_k: float, factor: float
) -> tuple[Tensor, Tensor]:
    """See the API. Returns the mixture, and the sums that the backward pass needs."""
    with guard(q):
        q, k, v, members, plan = _prepared(q, k, v, members)
        targets, sources, count = plan.targets, plan.sources, plan.members
        heads, d, dv = q.shape[2], q.shape[3], v.shape[3]
        shape, sums_shape = (count, heads, dv), (count, heads, d + dv + 2)
        if plan.empty:
            return v.new_zeros(shape), q.new_zeros(sums_shape, dtype=torch.float32)
        out, sums = v.new_empty(shape), q.new_empty(sums_shape, dtype=torch.float32)
        work = sums.new_empty(plan.work)

        args: tuple[Any, ...]
        args = (q, work, sums, members.target_lengths, members.target_ptr, targets.slots, count)
        plan.run(query_kernel, targets.slots, (*args, targets.size, targets.chunk, heads, *plan.q_strides))
        args = (k, v, work, sums, out, members.source_lengths, members.source_ptr, members.target_ptr)
        args = (*args, sources.slots, count, sources.size, sources.chunk, targets.slots, targets.size, targets.chunk)
        args = (*args, heads, *plan.source_strides, eps_q, eps_k, factor)
        plan.run(mix_kernel, sources.slots, args)
    return out, sums


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    members: Members,
    eps_q: float,
    eps_k: float,
    factor: float,
    sums: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    with guard(q):
        grad_q, grad_k, grad_v = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        q, k, v, members, plan = _prepared(q, k, v, members)
        if plan.empty:
            return grad_q.zero_(), grad_k.zero_(), grad_v.zero_()
        sums, grad_out = aligned(sums.contiguous()), aligned(grad_out.contiguous())
        targets, sources, count, heads = plan.targets, plan.sources, plan.members, q.shape[2]
        mean = sums.new_empty(sources.slots * heads * q.shape[3])

        args: tuple[Any, ...]
        args = (k, v, sums, grad_out, grad_k, grad_v, mean, members.source_lengths, members.source_ptr)
        args = (*args, sources.slots, count, sources.size, sources.chunk, heads, *plan.source_strides)
        plan.run(grad_source_kernel, sources.slots, (*args, eps_q, eps_k, factor), grad_out.dtype)
        args = (q, sums, mean, grad_q, members.target_lengths, members.target_ptr, members.source_ptr)
        args = (*args, targets.slots, count, targets.size, targets.chunk, sources.size, sources.chunk)
        plan.run(grad_query_kernel, targets.slots, (*args, heads, *plan.q_strides, eps_q))
    return grad_q, grad_k, grad_v
