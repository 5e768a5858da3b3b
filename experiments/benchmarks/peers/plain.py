"""Plain torch: gather, scatter, the same compiled, and torch.sparse."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.benchmarks.peers.base import Call, Peer, Unsupported
from experiments.benchmarks.reference import edge_scores, segment_attention
from experiments.benchmarks.workloads import Workload

__all__ = ["Compiled", "Gather", "Sparse"]


def gather_scatter(work: Workload) -> Call:
    """Rows of both ends of every edge, a scattered softmax, a scattered sum."""
    source, target = work.graph.edges
    n = work.graph.num_tokens

    def call() -> Tensor:
        at_target, at_source = work.q.index_select(0, target), work.k.index_select(0, source)
        scores = edge_scores(work, at_target, at_source, work.edge_gate, work.att)
        values = at_source if work.score == "gatv2" else work.v.index_select(0, source)
        return segment_attention(scores, values, target, n)

    return call


class Gather(Peer):
    """Gather and scatter, op by op."""

    name = "torch"
    sections = ("W1", "W2", "CPU")

    def build(self, work: Workload) -> Call:
        return gather_scatter(work)


class Compiled(Peer):
    """The same through torch.compile with its defaults."""

    name = "torch.compile"
    sections = ("W1", "W2")
    compiles = True

    def build(self, work: Workload) -> Call:
        torch._dynamo.reset()  # or the recompile limit of an earlier workload falls back to eager
        return torch.compile(gather_scatter(work), dynamic=False)


class Sparse(Peer):
    """torch.sparse, head by head: sampled products, softmax over each row, CSR matrix product."""

    name = "torch.sparse"
    sections = ("W1",)
    backward = False
    note = "float32 only, forward only"

    def applies(self, work: Workload) -> bool:
        return work.score == "dot" and work.q.dtype == torch.float32

    def build(self, work: Workload) -> Call:
        if work.q.device.type == "cpu" and not torch.backends.mkl.is_available():
            raise Unsupported("sampled_addmm needs MKL on the CPU")
        source, target = work.graph.edges
        n, rowptr = work.graph.num_tokens, work.graph.rowptr
        zeros = torch.sparse_csr_tensor(rowptr, source, work.q.new_zeros(source.shape[0]), (n, n))

        def call() -> Tensor:
            heads = []
            for head in range(work.q.shape[1]):
                q, k, v = work.q[:, head], work.k[:, head], work.v[:, head]
                scores = torch.sparse.sampled_addmm(zeros, q, k.T, beta=0.0, alpha=work.scale).values()
                top = scores.new_full((n,), -torch.inf).scatter_reduce(0, target, scores, "amax")
                weights = (scores - top[target]).exp()
                weights = weights / scores.new_zeros(n).index_add(0, target, weights)[target]
                heads.append(torch.sparse_csr_tensor(rowptr, source, weights, (n, n)) @ v)
            return torch.stack(heads, 1)

        return call
