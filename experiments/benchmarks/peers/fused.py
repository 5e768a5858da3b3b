"""Other people's fused kernels for graph transformers: anemoi-models (Triton) and turbo-gnn (CUDA)."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.benchmarks.peers.base import Call, Peer, Unsupported
from experiments.benchmarks.workloads import SLOPE, Workload

__all__ = ["Anemoi", "TurboGnn"]


class Anemoi(Peer):
    """The graph transformer of ECMWF's anemoi-models, which adds a row of each edge to key and value."""

    name = "anemoi-models"
    sections = ("W1", "W2", "W3")
    compiles = True
    note = "its kernel always reads edge rows [E, H, D] and writes their gradient; here they are zeros"

    def applies(self, work: Workload) -> bool:
        return work.edge_gate is None

    def build(self, work: Workload) -> Call:
        from anemoi.models.triton.gt import graph_transformer_attention_conv

        if work.q.device.type != "cuda":
            raise Unsupported("its operator is registered for CUDA only")
        source, target = work.graph.edges
        rows = work.q.new_zeros(source.shape[0], *work.q.shape[1:])
        # Edges are sorted by target, which is its order; the list by source and where each edge ends.
        by_source = source.argsort(stable=True)
        degree = torch.bincount(source, minlength=work.graph.num_tokens)
        rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        forward, reverse = (source, work.graph.rowptr), (rowptr, by_source, target)

        def call() -> Tensor:
            return graph_transformer_attention_conv(work.q, work.k, work.v, rows, forward, reverse)

        return call


class TurboGnn(Peer):
    """turbo-gnn's graph transformer and GATv2.

    Its names are the other way round: a row of the adjacency is a target, whose own row it takes from ``K``, and the
    sources' rows from ``Q`` (``csrc/gt/graph_transformer.cu``).
    """

    name = "turbo-gnn"
    sections = ("W1", "W1gat", "W3")

    def applies(self, work: Workload) -> bool:
        return work.score in ("dot", "gatv2")

    def build(self, work: Workload) -> Call:
        import turbo_gnn
        from turbo_gnn import AdjacencyForwardBackwardWithNodeBuckets as Adjacency

        heads, width = work.q.shape[-2:]
        if width not in (32, 64, 128, 256):
            raise Unsupported(f"its kernels are for 32, 64, 128 or 256 channels a head, this workload has {width}")
        edges, n = work.graph.edges, work.graph.num_tokens
        graph = Adjacency.from_edge_list(edges, num_nodes=n, index_dtype=torch.int32)

        def call() -> Tensor:
            if work.score == "dot":
                return turbo_gnn.graph_transformer_aggr(graph, work.q, Q=work.k, K=work.q, V=work.v, scale=work.scale)
            out = turbo_gnn.gatv2_aggr(graph, work.q, work.k, work.att, SLOPE)
            return out.view(n, heads, width)

        return call
