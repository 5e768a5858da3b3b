"""What holds for every score and every mechanism, yours included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.graph import TokenGraph
from graphattn.score import Score
from graphattn.testing.graphs import GRAPH_KINDS, random_graph
from graphattn.testing.oracle import assert_backends_equal, close

__all__ = ["check_mechanism", "check_score"]


def check_score(score: Score, *, heads: int = 2, channels: int = 4, edge_channels: int | None = None) -> None:
    """Run a score of your own through :func:`graphattn.attend` on many graphs, in float64.

    Backends must agree in value and gradient (parameters included), targets without an edge get 0, and the order of the
    edges must not matter.

    Args:
        score: A :class:`~graphattn.score.Score`; it is converted to float64 in place.
        heads: H.
        channels: D of queries, keys and values.
        edge_channels: Channels of the edge rows handed to the score; ``None``: no edge rows.

    Raises:
        AssertionError: If one of these does not hold.
    """
    from graphattn.attention import attend

    score.double()
    for seed, kind in enumerate(GRAPH_KINDS):
        graph = random_graph(seed, kind, bipartite=bool(seed % 2))
        q, k, v, edge = _tokens(graph, heads, channels, edge_channels, seed)

        def run(
            q: Tensor, k: Tensor, v: Tensor, edge: Tensor | None, *, backend: str, graph: TokenGraph = graph
        ) -> Any:
            return attend(graph, q, k, v, score=score, edge_gate=edge, backend=backend)

        assert_backends_equal(run, q, k, v, edge, parameters=score.parameters(), tolerance=1e-10)
        out: Any = attend(graph, q, k, v, score=score, edge_gate=edge)
        assert not out[graph.in_degree == 0].any(), f"{kind}: a target without an edge must get 0"
        order = torch.randperm(graph.num_edges)
        moved = TokenGraph.from_edge_index(
            graph.edge_index[:, order], num_targets=graph.num_targets, num_sources=graph.num_sources
        )
        again: Any = attend(moved, q, k, v, score=score, edge_gate=None if edge is None else edge[order])
        close(again, out, f"{kind}: edge order", 1e-10)


def check_mechanism(mechanism: str | nn.Module, *, width: int = 8, heads: int = 2) -> None:
    """Run a mechanism on many graphs: finite gradients, equivariance to the order of tokens, invariance to the order of
    edges, and a batch that equals its members.

    Args:
        mechanism: A registered name (made with ``width`` and ``heads``), or a
            :class:`~graphattn.mechanisms.Mechanism`, which is converted to float64 and evaluation mode in place.
        width: Channels of a token row.
        heads: Attention heads.

    Raises:
        AssertionError: If one of these does not hold.
    """
    from graphattn.mechanisms import MECHANISMS

    module = MECHANISMS.get(mechanism)(width, heads) if isinstance(mechanism, str) else mechanism
    module.double().eval()
    for seed, kind in enumerate(GRAPH_KINDS):
        graph = random_graph(seed, kind)
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(graph.num_tokens, width, dtype=torch.float64, generator=random, requires_grad=True)
        out, _ = module(x, graph)
        assert out.shape == x.shape, f"{kind}: output {list(out.shape)}, expected {list(x.shape)}"
        inputs = [x, *module.parameters()]
        for gradient in torch.autograd.grad(out.square().sum(), inputs, allow_unused=True, materialize_grads=True):
            assert bool(gradient.isfinite().all()), f"{kind}: a gradient is not finite"

        # Token n of the permuted graph is token order[n] of the first; each stays in its member.
        sizes = [(begin, end - begin) for begin, end in zip(*_bounds(graph), strict=True)]
        order = torch.cat([begin + torch.randperm(size, generator=random) for begin, size in sizes])
        shuffle = torch.randperm(graph.num_edges, generator=random)
        edges = order.argsort()[graph.edge_index][:, shuffle]
        moved, _ = module(x[order], TokenGraph.from_edge_index(edges, graph.num_tokens, ptr=graph.target_ptr))
        close(moved, out[order], f"{kind}: permutation of tokens and edges")
        for begin, end in zip(*_bounds(graph), strict=True):
            mine = (graph.edge_index[1] >= begin) & (graph.edge_index[1] < end)
            member = TokenGraph.from_edge_index(graph.edge_index[:, mine] - begin, end - begin)
            close(module(x[begin:end], member)[0], out[begin:end], f"{kind}: member {begin}:{end} of a batch")


def _tokens(
    graph: TokenGraph, heads: int, channels: int, edge_channels: int | None, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, heads, columns, dtype=torch.float64, generator=random)

    q, k, v = (draw(rows, channels) for rows in (graph.num_targets, graph.num_sources, graph.num_sources))
    return q, k, v, None if edge_channels is None else draw(graph.num_edges, edge_channels)


def _bounds(graph: TokenGraph) -> tuple[list[int], list[int]]:
    ptr = [0, graph.num_tokens] if graph.target_ptr is None else graph.target_ptr.tolist()
    return ptr[:-1], ptr[1:]
