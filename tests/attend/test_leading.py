"""Leading dimensions, and graphs with a copy for each head or batch entry."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphattn.attention import attend, edge_weights, propagate
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.score import Score
from graphattn.testing import random_graph

Draw = Callable[..., Tensor]
B, H, D, D_V = 3, 2, 4, 5
SEED = torch.tensor([1, 2])


def inputs(graph: TokenGraph, draw: Draw, *lead: int) -> list[Tensor]:
    t, s = graph.num_targets, graph.num_sources
    return [draw(*lead, t, H, D), draw(*lead, s, H, D), draw(*lead, s, H, D_V)]


def same_gradients(got: Tensor, expected: Tensor, leaves: list[Tensor], draw: Draw) -> None:
    torch.testing.assert_close(got, expected)
    slope = draw(*got.shape)
    torch.testing.assert_close(torch.autograd.grad(got, leaves, slope), torch.autograd.grad(expected, leaves, slope))


@pytest.mark.parametrize("lead", [(), (B,), (2, B), (1, 1)], ids=str)
@pytest.mark.parametrize("own_edges", [False, True], ids=["shared-edges", "own-edges"])
def test_leading_dimensions_share_the_graph(lead: tuple[int, ...], own_edges: bool, draw: Draw) -> None:
    graph = random_graph(3, "hub", bipartite=True)
    edge_lead = lead if own_edges else ()
    leaves = inputs(graph, draw, *lead)
    leaves += [draw(*edge_lead, graph.num_edges, H), draw(*edge_lead, graph.num_edges, H, D)]
    q, k, v, bias, gate = (x.requires_grad_() for x in leaves)

    def one(index: tuple[int, ...]) -> Tensor:
        edges = index if own_edges else ()
        return attend(graph, q[index], k[index], v[index], edge_bias=bias[edges], edge_gate=gate[edges], clamp=1.0)

    got = attend(graph, q, k, v, edge_bias=bias, edge_gate=gate, clamp=1.0)
    each = [one(index) for index in itertools.product(*(range(n) for n in lead))]
    same_gradients(got, torch.stack(each).reshape(got.shape), [q, k, v, bias, gate], draw)


@pytest.mark.parametrize("lead", [(), (B,), (2, B)], ids=str)
def test_weights_and_lse_have_the_leading_dimensions(lead: tuple[int, ...], draw: Draw) -> None:
    graph = random_graph(3, "hub", bipartite=True)
    q, k, v = inputs(graph, draw, *lead)
    result = attend(graph, q, k, v, need_weights=True, need_lse=True)
    assert result.weights.shape == (*lead, graph.num_edges, H)
    assert result.lse.shape == (*lead, graph.num_targets, H)
    last = tuple(n - 1 for n in lead)
    alone = attend(graph, q[last], k[last], v[last], need_weights=True, need_lse=True)
    torch.testing.assert_close((result.weights[last], result.lse[last]), (alone.weights, alone.lse))
    torch.testing.assert_close(propagate(graph, result.weights, v), result.out)
    torch.testing.assert_close(edge_weights(graph, q, k), result.weights)
    torch.testing.assert_close(edge_weights(graph, None, None, score=result.weights.log()), result.weights)


def test_an_empty_leading_dimension() -> None:
    graph = random_graph(3)
    x = torch.zeros(0, graph.num_tokens, H, D)
    assert attend(graph, x, x, x).shape == x.shape


def test_dropout_differs_between_the_entries_of_a_leading_dimension(draw: Draw) -> None:
    graph = random_graph(3, "dense")
    x = draw(1, graph.num_tokens, H, D).expand(B, -1, -1, -1)
    out = attend(graph, x, x, x, dropout_p=0.5, dropout_seed=SEED)
    assert not torch.equal(out[0], out[1]) and not torch.equal(out[0], out[2])


def graphs(count: int, *, bipartite: bool = False) -> list[TokenGraph]:
    """Graphs of one size and different edges, one of them without any."""
    kinds = ["hub", "sparse", "no_edges", "empty_rows", "duplicates", "dense"]
    made = []
    for n in range(count):
        edges = random_graph(n, kinds[n]).edge_index
        edges = edges[:, (edges < 6).all(0)]
        made.append(TokenGraph.from_edge_index(edges, num_targets=6, num_sources=6 + 2 * bipartite))
    return made


@pytest.mark.parametrize("lead", [(), (B,), (2, B)], ids=str)
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
def test_a_graph_for_each_head(lead: tuple[int, ...], bipartite: bool, draw: Draw) -> None:
    members = graphs(H, bipartite=bipartite)
    graph = TokenGraph.per_head(members)
    q, k, v = (x.requires_grad_() for x in inputs(graph, draw, *lead))
    bias = draw(graph.num_edges).requires_grad_()
    cut = graph.edge_slices.tolist()
    each = [
        attend(member, *(x[..., h : h + 1, :] for x in (q, k, v)), edge_bias=bias[cut[h] : cut[h + 1]], clamp=1.0)
        for h, member in enumerate(members)
    ]
    got = attend(graph, q, k, v, edge_bias=bias, clamp=1.0)
    same_gradients(got, torch.cat(each, -2), [q, k, v, bias], draw)
    steps = attend(graph, q, k, v, edge_bias=bias, clamp=1.0, need_weights=True, need_lse=True)
    torch.testing.assert_close(steps.out, got)
    assert steps.weights.shape == (*lead, graph.num_edges, 1) and steps.lse.shape == q.shape[:-1]
    torch.testing.assert_close(propagate(graph, steps.weights, v), got)


@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_a_graph_for_each_batch_entry(lead: tuple[int, ...], draw: Draw) -> None:
    members = graphs(B)
    graph = TokenGraph.stack(members)
    q, k, v = (x.requires_grad_() for x in inputs(graph, draw, *lead, B))
    bias = draw(graph.num_edges, H).requires_grad_()
    cut = graph.edge_slices.tolist()
    each = [
        attend(member, *(x[..., b, :, :, :] for x in (q, k, v)), edge_bias=bias[cut[b] : cut[b + 1]])
        for b, member in enumerate(members)
    ]
    got = attend(graph, q, k, v, edge_bias=bias)
    same_gradients(got, torch.stack(each, -4), [q, k, v, bias], draw)
    steps = attend(graph, q, k, v, edge_bias=bias, need_weights=True, need_lse=True)
    torch.testing.assert_close(steps.out, got)
    assert steps.weights.shape == (*lead, graph.num_edges, H) and steps.lse.shape == q.shape[:-1]
    torch.testing.assert_close(edge_weights(graph, q, k, edge_bias=bias), steps.weights)


def test_a_graph_for_each_head_of_each_batch_entry(draw: Draw) -> None:
    members = graphs(2 * H)
    graph = TokenGraph.stack([TokenGraph.per_head(members[:H]), TokenGraph.per_head(members[H:])])
    assert graph.leading == (2, H)
    q, k, v = (x.requires_grad_() for x in inputs(graph, draw, 2))
    bias = draw(graph.num_edges).requires_grad_()
    cut = graph.edge_slices.tolist()
    each = [
        attend(member, *(x[n // H, :, n % H : n % H + 1] for x in (q, k, v)), edge_bias=bias[cut[n] : cut[n + 1]])
        for n, member in enumerate(members)
    ]
    expected = torch.stack([torch.cat(each[:H], -2), torch.cat(each[H:], -2)])
    got = attend(graph, q, k, v, edge_bias=bias)
    same_gradients(got, expected, [q, k, v, bias], draw)


class _HeadScore(Score):
    """A score with parameters for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, H * D, dtype=torch.float64).reshape(H, D))

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        return ((q_target + k_source).tanh() * self.weight).sum(-1)


@pytest.mark.parametrize("lead", [(), (B,)], ids=str)
def test_parameters_for_each_head_meet_a_graph_for_each_head(lead: tuple[int, ...], draw: Draw) -> None:
    members, score = graphs(H), _HeadScore()
    graph = TokenGraph.per_head(members)
    q, k, v = (x.requires_grad_() for x in inputs(graph, draw, *lead))
    # All heads over each graph; head h of graph h counts.
    each = [attend(member, q, k, v, score=score)[..., h : h + 1, :] for h, member in enumerate(members)]
    got = attend(graph, q, k, v, score=score)
    same_gradients(got, torch.cat(each, -2), [q, k, v, score.weight], draw)


def test_a_ragged_batch_has_no_leading_dimension(draw: Draw) -> None:
    graph = TokenGraph.batch(graphs(3))
    q, k, v = inputs(graph, draw)
    assert attend(graph, q, k, v).shape == (18, H, D_V)


def test_errors() -> None:
    x = torch.zeros(B, 6, H, D)
    with pytest.raises(ArgumentError, match="one graph for each of 3 heads, q, k and v have 2"):
        attend(TokenGraph.per_head(graphs(3)), x, x, x)
    with pytest.raises(ArgumentError, match="one graph for each of 2 batch entries.*leading dimensions are \\[3\\]"):
        attend(TokenGraph.stack(graphs(2)), x, x, x)
    with pytest.raises(ArgumentError, match="one graph for each of 3 batch entries.*leading dimensions are \\[\\]"):
        attend(TokenGraph.stack(graphs(3)), x[0], x[0], x[0])
    graph = graphs(1)[0]
    bias = torch.zeros(2, graph.num_edges, H)
    with pytest.raises(ArgumentError, match="edge_bias must be .*leading dimensions \\[3\\] or none; got \\[2, "):
        attend(graph, x, x, x, edge_bias=bias)
