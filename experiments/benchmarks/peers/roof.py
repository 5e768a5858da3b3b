"""The roof: a kernel that only gathers the K and the V row of every edge, and adds them. No attention is faster."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.benchmarks.peers.base import Call, Peer, Unsupported
from experiments.benchmarks.workloads import Workload

__all__ = ["CHUNK", "HEAD_GROUPS", "Roof", "sums"]

HEAD_GROUPS = (1, 2, 8)
_TILE = 256  # channels of a program: 16 bytes for each lane of one warp in half precision
CHUNK = 256  # longest run of edges: every run is one row's


class Roof(Peer):
    """Rows sorted by degree, hubs in parts of their own, several rows a program, all edges in steps: the schedule
    of a fused kernel without its arithmetic. Parts of hubs are added up by nobody, which only makes it faster."""

    name = "gather roof"
    sections = ("W1", "W3")
    backward = False
    compiles = True
    note = "not attention: the sum of k + v over the in-edges; the best of three head groups"

    def applies(self, work: Workload) -> bool:
        return work.score == "dot"

    def build(self, work: Workload) -> Call:
        if work.q.device.type != "cuda":
            raise Unsupported("a CUDA kernel")
        calls = self.variants(work)
        times = {heads: _best_of(call) for heads, call in calls.items()}
        return calls[min(times, key=lambda heads: times[heads])]

    def variants(self, work: Workload) -> dict[int, Call]:
        """A call for each size of a head group."""
        import triton

        from experiments.benchmarks.peers._gather import gather_kernel

        rowptr, col = work.graph.rowptr, work.graph.edges[0].int()
        begin, end, row = _runs(rowptr)
        k, v, out = work.k.detach(), work.v.detach(), torch.empty_like(work.v)
        heads, width = k.shape[-2:]

        def make(group: int) -> Call:
            rows = max(1, _TILE // (group * width))
            grid = (triton.cdiv(row.shape[0], rows), triton.cdiv(heads, group))

            def call() -> Tensor:
                gather_kernel[grid](
                    k, v, out, col, row, begin, end, row.shape[0], heads * width,
                    W=group * width, R=rows, num_warps=1,
                )  # fmt: skip
                return out

            return call

        return {group: make(group) for group in HEAD_GROUPS if heads % group == 0}


def sums(work: Workload) -> Tensor:
    """What the roof kernel computes for targets that are no hubs."""
    total = torch.zeros_like(work.v, dtype=torch.float32, requires_grad=False)
    for source, target in zip(*(end.split(1 << 23) for end in work.graph.edges), strict=True):
        rows = work.k.detach().index_select(0, source).float() + work.v.detach().index_select(0, source)
        total.index_add_(0, target, rows)
    return total


def _runs(rowptr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Begin, end and row of every run of at most ``CHUNK`` edges, the longest first."""
    degree = rowptr.diff()
    parts = ((degree + CHUNK - 1) // CHUNK).clamp(min=1)
    row = torch.arange(degree.shape[0], device=degree.device).repeat_interleave(parts)
    number = torch.arange(row.shape[0], device=row.device) - (parts.cumsum(0) - parts)[row]
    begin = rowptr[row] + number * CHUNK
    end = torch.minimum(begin + CHUNK, rowptr[row + 1])
    order = (begin - end).argsort(stable=True)
    return begin[order].int(), end[order].int(), row[order].int()


def _best_of(call: Call) -> float:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(10):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
