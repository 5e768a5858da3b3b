"""The graph transformer's attention against its equations (Dwivedi & Bresson 2020)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graphattn import attend
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import GraphTransformerAttention
from graphattn.testing import random_graph

WIDTH, HEADS, D = 8, 2, 4


def published(
    layer: GraphTransformerAttention, x: Tensor, graph: TokenGraph, edge: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The layer of the released code, line by line: weights exp(clamp(s)), over their sum (+ 1e-6 with edge rows)."""
    source, target = graph.edge_index
    q, k, v = (project(x).view(-1, HEADS, D) for project in (layer.query, layer.key, layer.value))
    product = k[source] * q[target] / math.sqrt(D)
    if edge is not None:
        product = product * layer.edge(edge).view(-1, HEADS, D)
    weight = product.sum(-1).clamp(-5, 5).exp()
    z = x.new_zeros(x.shape[0], HEADS).index_add(0, target, weight).unsqueeze(-1)
    total = torch.zeros_like(v).index_add(0, target, weight.unsqueeze(-1) * v[source])
    u = total / (z + 1e-6) if edge is not None else total / z
    return layer.out(u.flatten(1)), product.flatten(1)


def test_without_edge_rows() -> None:
    graph = random_graph(2, "self_loops")  # every node reads something
    layer = GraphTransformerAttention(WIDTH, HEADS).double()
    x = 4 * torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64)
    out, edge = layer(x, graph)
    torch.testing.assert_close(out, published(layer, x, graph, None)[0], rtol=1e-12, atol=1e-12)
    assert edge is None


def test_with_edge_rows() -> None:
    """Equal but for the 1e-6 in the published denominator; the edge output takes the product before the clamp."""
    graph = random_graph(2, "self_loops")
    layer = GraphTransformerAttention(WIDTH, HEADS, WIDTH).double()
    x = 4 * torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64)
    rows = 4 * torch.randn(graph.num_edges, WIDTH, dtype=torch.float64)
    expected, product = published(layer, x, graph, rows)
    assert (product.view(-1, HEADS, D).sum(-1).abs() > 5).any(), "some scores should be clamped"
    out, edge = layer(x, graph, rows)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edge, layer.edge_out(product), rtol=1e-12, atol=1e-12)


def test_edge_rows_of_ones_change_nothing() -> None:
    """E = 1 and the edge output detached: the form without edges (invariant 5)."""
    graph = random_graph(2, "hub")
    plain, edged = (GraphTransformerAttention(WIDTH, HEADS, w, bias=True).double() for w in (None, WIDTH))
    edged.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        edged.edge.weight.zero_()
        edged.edge.bias.fill_(1.0)
    x = torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64)
    rows = torch.randn(graph.num_edges, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(edged(x, graph, rows)[0], plain(x, graph)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clamp", [None, 1.0, 5.0])
def test_the_clamp_is_an_option(clamp: float | None) -> None:
    graph = random_graph(2, "dense")
    layer = GraphTransformerAttention(WIDTH, HEADS, clamp=clamp).double()
    free = GraphTransformerAttention(WIDTH, HEADS, clamp=None).double()
    free.load_state_dict(layer.state_dict())
    x = 20 * torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64)
    assert torch.allclose(layer(x, graph)[0], free(x, graph)[0]) == (clamp is None)


def test_edge_rows_are_equivariant() -> None:
    """Edges in another order: token rows stay, edge rows move along."""
    graph = random_graph(2, "duplicates")
    layer = GraphTransformerAttention(WIDTH, HEADS, WIDTH).double()
    x = torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64)
    rows = torch.randn(graph.num_edges, WIDTH, dtype=torch.float64)
    order = torch.randperm(graph.num_edges)
    moved = TokenGraph.from_edge_index(graph.edge_index[:, order], graph.num_tokens)
    out, edge = layer(x, graph, rows)
    again, moved_edge = layer(x, moved, rows[order])
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(moved_edge, edge[order])


def test_an_isolated_token_gets_the_bias_of_the_output_projection() -> None:
    """The released code gives 0/0 there."""
    graph = random_graph(2, "empty_rows")
    empty = graph.in_degree == 0
    for edges in (False, True):
        layer = GraphTransformerAttention(WIDTH, HEADS, WIDTH if edges else None)
        x = torch.randn(graph.num_tokens, WIDTH, requires_grad=True)
        out, _ = layer(x, graph, torch.randn(graph.num_edges, WIDTH) if edges else None)
        torch.testing.assert_close(out[empty], layer.out.bias.expand(int(empty.sum()), -1))
        out.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("edges", [False, True], ids=["no-edges", "edges"])
def test_backends_agree(edges: bool) -> None:
    graph = random_graph(2, "hub")
    torch.manual_seed(0)
    layers = {
        backend: GraphTransformerAttention(WIDTH, HEADS, WIDTH if edges else None, backend=backend).double()
        for backend in ("reference", "gather")
    }
    layers["gather"].load_state_dict(layers["reference"].state_dict())
    x = torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64)
    rows = torch.randn(graph.num_edges, WIDTH, dtype=torch.float64) if edges else None
    results = []
    for layer in layers.values():
        out, edge = layer(x, graph, rows)
        loss = out.square().sum() + (0 if edge is None else edge.square().sum())
        results.append([out, *torch.autograd.grad(loss, list(layer.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_attention_dropout_drops_weights_and_dropout_drops_channels() -> None:
    graph = random_graph(2, "dense")
    x = torch.randn(graph.num_tokens, WIDTH)
    for options in ({"attention_dropout": 0.5}, {"dropout": 0.5}):
        layer = GraphTransformerAttention(WIDTH, HEADS, **options)
        torch.manual_seed(1)
        dropped = layer(x, graph)[0]
        assert not torch.allclose(dropped, layer.eval()(x, graph)[0])


def test_errors() -> None:
    graph = random_graph(2, "hub")
    x, rows = torch.zeros(graph.num_tokens, WIDTH), torch.zeros(graph.num_edges, WIDTH)
    with pytest.raises(ArgumentError, match="edge_width must equal width, 8, or be None, got 4"):
        GraphTransformerAttention(WIDTH, HEADS, 4)
    with pytest.raises(ArgumentError, match="edge rows were given"):
        GraphTransformerAttention(WIDTH, HEADS)(x, graph, rows)
    layer = GraphTransformerAttention(WIDTH, HEADS, WIDTH)
    with pytest.raises(ArgumentError, match="edge rows \\[E, 8\\] are needed"):
        layer(x, graph)
    for bad in (rows[:1], rows[:, :4], rows[None]):
        with pytest.raises(ArgumentError, match=f"edge must be \\[{graph.num_edges}, 8\\]"):
            layer(x, graph, bad)
    with pytest.raises(ArgumentError, match="edge must be"):
        layer(x[None], graph, rows)


def test_pagerank_over_its_weights() -> None:
    """The propagator is applied to the weights of the published attention, densely."""
    torch.manual_seed(0)
    graph, x = random_graph(1, "self_loops"), torch.randn(random_graph(1, "self_loops").num_tokens, 8)
    options = {"propagator": "pagerank", "propagator_options": {"alpha": 0.2}}
    walk = GraphTransformerAttention(8, 2, **options).double()
    q, k, v = (project(x.double()).unflatten(-1, (2, 4)) for project in (walk.query, walk.key, walk.value))
    weights = attend(graph, q, k, v, clamp=5.0, need_weights=True).weights
    rows = []
    for head in range(2):
        matrix = torch.zeros(graph.num_tokens, graph.num_tokens, dtype=torch.float64)
        source, target = graph.edge_index.long()
        matrix = matrix.index_put((target, source), weights[:, head], accumulate=True)
        system = torch.eye(graph.num_tokens, dtype=torch.float64) - 0.8 * matrix
        rows.append(0.2 * torch.linalg.solve(system, v[:, head]))
    torch.testing.assert_close(walk(x.double(), graph)[0], walk.out(torch.cat(rows, 1)), rtol=1e-8, atol=1e-8)
    with pytest.raises(ArgumentError, match="unknown propagator 'page_rank'; did you mean 'pagerank'"):
        GraphTransformerAttention(8, 2, propagator="page_rank")
