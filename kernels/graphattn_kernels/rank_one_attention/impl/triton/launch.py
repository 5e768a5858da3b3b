"""How rows are dealt to programs, and launches: three forward, two backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._members import Members
from graphattn_kernels._members_triton import num_slots
from graphattn_kernels._triton import aligned, dense_rows, guard, launch, next_power_of_2, strides_of
from graphattn_kernels.rank_one_attention.impl.triton.kernels import (
    grad_query_kernel,
    grad_source_kernel,
    join_kernel,
    mix_kernel,
    query_kernel,
)

__all__ = ["backward", "forward"]

_PROGRAMS = 512  # of a pass: as many as a large GPU holds at once, of these
_CHUNKS = 128  # of a member, at most: every program of the next pass adds their sums
_TILE = 4096  # numbers of an input that a program asks for at once
_JOINED = 4096  # numbers of sums that are added at once


class _Kind(NamedTuple):
    """What the kernels are compiled for."""

    dtype: torch.dtype
    device: int
    width: int
    v_width: int
    group: int
    align: int
    """A power of 2 that divides every stride, up to what 16 bytes hold."""
    wide: tuple[bool, ...]
    """Which strides need 64 bits."""
    members: tuple[torch.dtype | None, ...]


class _Side(NamedTuple):
    """Targets or sources, and how they are dealt to programs."""

    lengths: Tensor | None
    ptr: Tensor | None
    slots: int
    size: int
    chunk: int


class _Call:
    """The arguments that the kernels take, prepared once."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, members: Members) -> None:
        self.inputs = q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        self.count, self.heads = members.count(q), q.shape[2]
        self.width, self.v_width = q.shape[3], v.shape[3]
        strides, align = strides_of(q.dtype, *((x.shape, x.stride()) for x in self.inputs))
        self.q_strides, self.source_strides = strides[:3], strides[3:]
        self.group = self._group(q.dtype.itemsize)
        where = q.dtype, q.get_device(), self.width, self.v_width, self.group, align
        wide = tuple([n >= 2**31 for n in strides])
        self.kind = _Kind(*where, wide, tuple([None if x is None else x.dtype for x in members]))
        members = Members(*(None if x is None else aligned(x.contiguous()) for x in members))
        self.targets = self._side(members.target_lengths, members.target_ptr, q)
        self.sources = self._side(members.source_lengths, members.source_ptr, k)

    def _group(self, itemsize: int) -> int:
        """Heads of a program: as many as make a cache line."""
        group, most = 1, next_power_of_2(max(1, self.heads))
        while group < most and group * min(self.width, self.v_width) * itemsize < 128:
            group *= 2
        return group

    @property
    def groups(self) -> int:
        return -(-self.heads // self.group)

    @property
    def padded(self) -> dict[str, int]:
        return {"DP": next_power_of_2(self.width), "DVP": next_power_of_2(self.v_width)}

    @property
    def rows(self) -> int:
        """Rows that a program takes at once."""
        return max(1, _TILE // (self.group * max(self.padded.values())))

    @property
    def joined(self) -> int:
        """Slots that are added at once."""
        return max(1, min(32, _JOINED // (self.group * max(self.padded.values()))))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to sum, so that everything is zero."""
        return 0 in (self.count, self.targets.size, self.sources.size, self.heads, self.width, self.v_width)

    def _side(self, lengths: Tensor | None, ptr: Tensor | None, x: Tensor) -> _Side:
        size = x.shape[1]
        if 0 in (size, self.heads, self.count, self.width, self.v_width):
            return _Side(lengths, ptr, 0, size, 1)
        chunks = min(_CHUNKS, -(-_PROGRAMS // (self.groups * (self.count if ptr is None else 1))))
        chunk = -(-size // chunks)
        chunk = -(-chunk // self.rows) * self.rows
        return _Side(lengths, ptr, num_slots(ptr, self.count, size, chunk), size, chunk)

    def run(self, kernel: Any, programs: int, args: tuple[Any, ...], constants: dict[str, int]) -> None:
        """Launch so many programs for each group of heads."""
        constants = {**constants, "HB": self.group, **self._moving(kernel), "num_warps": 4, "num_stages": 1}
        launch(kernel, (programs * self.groups, 1, 1), args, constants, (self.kind, self.rows, self.joined))

    def _moving(self, kernel: Any) -> dict[str, int]:
        tile = {"R": self.rows}
        join = {"B": self.joined}
        return {
            query_kernel: {**tile, "ALIGN": self.kind.align},
            mix_kernel: {**tile, **join, "ALIGN": self.kind.align},
            join_kernel: join,
            grad_source_kernel: {**tile, "ALIGN": self.kind.align},
            grad_query_kernel: {**tile, **join, "ALIGN": self.kind.align},
        }[kernel]


def forward(q: Tensor, k: Tensor, v: Tensor, members: Members, eps_q: float, eps_k: float) -> tuple[Tensor, Tensor]:
    """See the API. Returns the mixture, and the sums that the backward pass needs."""
    with guard(q):
        call = _Call(q, k, v, members)
        q, k, v = call.inputs
        d, dv, heads, targets, sources = call.width, call.v_width, call.heads, call.targets, call.sources
        shape, sums_shape = (call.count, heads, dv), (call.count, heads, d + dv + 2)
        if call.empty:
            return v.new_zeros(shape), q.new_zeros(sums_shape, dtype=torch.float32)
        out, sums = v.new_empty(shape), q.new_empty(sums_shape, dtype=torch.float32)
        # One allocation, in four parts that begin at multiples of 16 bytes.
        numbers = targets.slots * d, targets.slots, sources.slots * dv, sources.slots
        sizes = [-(-heads * n // 4) * 4 for n in numbers]
        query, length, value, weight = sums.new_empty(sum(sizes)).split(sizes)
        widths = {"D": d, "DV": dv, **call.padded}

        args: tuple[Any, ...]
        args = (q, length, query, targets.lengths, targets.ptr, targets.slots, call.count, targets.size, targets.chunk)
        call.run(query_kernel, targets.slots, (*args, heads, *call.q_strides), {"D": d, "DP": widths["DP"]})
        args = (k, v, length, query, weight, value, sums, sources.lengths, sources.ptr, targets.ptr, sources.slots)
        sides = call.count, sources.size, sources.chunk, targets.size, targets.chunk, heads, *call.source_strides
        call.run(mix_kernel, sources.slots, (*args, *sides, eps_q), widths)
        args = (weight, value, sums, out, sources.ptr, sources.size, sources.chunk, heads, eps_k)
        call.run(join_kernel, call.count, args, {"D": d, "DV": dv, "DVP": widths["DVP"]})
    return out, sums


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    members: Members,
    eps_q: float,
    eps_k: float,
    sums: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    with guard(q):
        call = _Call(q, k, v, members)
        if call.empty:
            zeros = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
            return zeros[0], zeros[1], zeros[2]
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        q, k, v = call.inputs
        sums, grad_out = aligned(sums.contiguous()), aligned(grad_out.contiguous())
        d, dv, heads, targets, sources = call.width, call.v_width, call.heads, call.targets, call.sources
        mean = sums.new_empty(sources.slots * heads * d)
        widths = {"D": d, "DV": dv, **call.padded}

        args: tuple[Any, ...]
        args = (k, v, sums, grad_out, grad_k, grad_v, mean, sources.lengths, sources.ptr, sources.slots, call.count)
        numbers = sources.size, sources.chunk, heads, *call.source_strides, eps_q, eps_k
        call.run(grad_source_kernel, sources.slots, (*args, *numbers), widths)
        args = (q, sums, mean, grad_q, targets.lengths, targets.ptr, sources.ptr, targets.slots, call.count)
        numbers = targets.size, targets.chunk, sources.size, sources.chunk, heads, *call.q_strides, eps_q
        call.run(grad_query_kernel, targets.slots, (*args, *numbers), {"D": d, "DV": dv, "DP": widths["DP"]})
    return grad_q, grad_k, grad_v
