"""Libraries for graph networks: PyG, torch-scatter, DGL."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments.benchmarks.peers.base import Call, Peer, Unsupported
from experiments.benchmarks.reference import edge_scores
from experiments.benchmarks.workloads import SLOPE, Workload

__all__ = ["Dgl", "Pyg", "TorchScatter"]


class Pyg(Peer):
    """The message passing of TransformerConv, GATConv and GATv2Conv, without their projections."""

    name = "PyG"
    sections = ("W1", "W1gat", "W2", "W3", "CPU")
    note = "PyG's own operations as pip installs them, without torch-scatter and pyg-lib"

    def applies(self, work: Workload) -> bool:
        return work.edge_gate is None  # its edge features are added to keys and values, another function

    def build(self, work: Workload) -> Call:
        from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

        heads, width = work.v.shape[-2:]
        edges, options = work.graph.edges, {"heads": heads}
        if work.score == "dot":
            conv = TransformerConv(1, width, **options)

            def call() -> Tensor:
                out = conv.propagate(edges, query=work.q, key=work.k, value=work.v, edge_attr=None)
                conv._alpha = None  # as its forward does
                return out

        elif work.score == "gat":
            conv = GATConv(1, width, negative_slope=SLOPE, **options)

            def call() -> Tensor:
                halves = work.k.squeeze(-1), work.q.squeeze(-1)  # sources, targets
                alpha = conv.edge_updater(edges, alpha=halves, edge_attr=None, size=None)
                return conv.propagate(edges, x=(work.v, work.v), alpha=alpha, size=None)

        else:
            conv = GATv2Conv(1, width, negative_slope=SLOPE, **options)
            del conv.att
            conv.att = work.att

            def call() -> Tensor:
                rows = work.k, work.q  # sources, targets
                alpha = conv.edge_updater(edges, x=rows, edge_attr=None)
                return conv.propagate(edges, x=rows, alpha=alpha)

        return call


class TorchScatter(Peer):
    """Gather, then torch-scatter's fused softmax and sum."""

    name = "torch-scatter"
    sections = ("W1", "W2", "W3")

    def build(self, work: Workload) -> Call:
        from torch_scatter import scatter_sum, scatter_softmax  # isort: skip

        source, target = work.graph.edges
        n = work.graph.num_tokens

        def call() -> Tensor:
            scores = edge_scores(work, work.q[target], work.k[source], work.edge_gate, work.att)
            weights = scatter_softmax(scores, target, dim=0, dim_size=n)
            return scatter_sum(weights.unsqueeze(-1) * work.v[source], target, dim=0, dim_size=n)

        return call


class Dgl(Peer):
    """DGL's u_dot_v, edge_softmax and u_mul_e_sum."""

    name = "DGL"
    sections = ("W1", "W2", "W3", "CPU")

    def applies(self, work: Workload) -> bool:
        return work.edge_gate is None

    def build(self, work: Workload) -> Call:
        try:
            import dgl
            from dgl import ops
        except (OSError, RuntimeError) as error:  # a wheel for another torch
            raise ImportError(str(error).splitlines()[0]) from error

        graph = dgl.graph((work.graph.edges[0], work.graph.edges[1]), num_nodes=work.graph.num_tokens)
        if work.q.dtype not in (torch.float32, torch.float64):
            raise Unsupported(f"DGL's kernels are for float32 and float64, this workload is {work.q.dtype}")
        factor = 1.0 / math.sqrt(work.q.shape[-1])

        def call() -> Tensor:
            scores = ops.u_dot_v(graph, work.k, work.q) * factor
            return ops.u_mul_e_sum(graph, work.v, dgl.nn.functional.edge_softmax(graph, scores))

        return call
