"""GatedGCN: its equations by hand, isolated tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import GatedGCN
from graphattn.testing import random_graph

WIDTH = 6


def by_hand(layer: GatedGCN, x: Tensor, graph: TokenGraph, edge: Tensor | None) -> tuple[Tensor, Tensor]:
    """Edge after edge, in a loop."""
    root, value, target, source = layer.tokens(x).chunk(4, -1)
    above, below = torch.zeros_like(root), torch.zeros_like(root)
    scores = []
    for e, (s, t) in enumerate(graph.edge_index.T.tolist()):
        score = target[t] + source[s] + (0 if edge is None else layer.edge(edge[e]))
        gate = 1 / (1 + torch.exp(-score))
        at = torch.zeros(len(x), 1, dtype=x.dtype)
        at[t] = 1
        above, below = above + at * gate * value[s], below + at * gate
        scores.append(score)
    return root + above / (below + 1e-6), torch.stack(scores)


@pytest.mark.parametrize("kind", ["hub", "empty_rows", "duplicates", "batch"])
@pytest.mark.parametrize("edge_width", [None, 3], ids=["no-edges", "edges"])
def test_equations(kind: str, edge_width: int | None) -> None:
    graph = random_graph(0, kind)
    layer = GatedGCN(WIDTH, 2, edge_width).double()
    x = torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64, requires_grad=True)
    edge = None if edge_width is None else torch.randn(graph.num_edges, 3, dtype=torch.float64, requires_grad=True)
    out, new_edge = layer(x, graph, edge)
    expected, scores = by_hand(layer, x, graph, edge)
    torch.testing.assert_close(out, expected)
    if edge is None:
        assert new_edge is None
    else:
        torch.testing.assert_close(new_edge, scores)
    leaves = [x, *layer.parameters()] + ([] if edge is None else [edge])
    slope = torch.randn_like(out)
    grads = [torch.autograd.grad(y, leaves, slope, retain_graph=True) for y in (out, expected)]
    torch.testing.assert_close(*grads)


def test_a_token_without_edges_keeps_its_own_part() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0], [1]]), 3)
    layer, x = GatedGCN(WIDTH), torch.randn(3, WIDTH)
    torch.testing.assert_close(layer(x, graph)[0][2], layer.tokens(x[2])[:WIDTH])


def test_edge_output_is_left_out_on_request() -> None:
    graph = random_graph(0)
    layer = GatedGCN(WIDTH, 1, 3, edge_output=False)
    assert layer(torch.zeros(graph.num_tokens, WIDTH), graph, torch.zeros(graph.num_edges, 3))[1] is None


def test_errors() -> None:
    graph = random_graph(0)
    x = torch.zeros(graph.num_tokens, WIDTH)
    with pytest.raises(ArgumentError, match=f"edge must be \\[{graph.num_edges}, 3\\].*got None"):
        GatedGCN(WIDTH, 1, 3)(x, graph)
    with pytest.raises(ArgumentError, match="edge must be None, got \\[2, 3\\]"):
        GatedGCN(WIDTH)(x, graph, torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match=r"graph must have no leading dimensions, or one for each entry of x"):
        GatedGCN(WIDTH)(x, TokenGraph.stack([graph, graph]))
