"""Propagators and the operator that they see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.propagate import PROPAGATORS, EdgeOperator, OneHop, resolve_propagator
from graphattn.testing import GRAPH_KINDS, assert_backends_equal, random_graph

H, D = 2, 3


def dense(graph: TokenGraph, weights: Tensor) -> Tensor:
    """``[H, T, S]``; duplicate edges add."""
    source, target = graph.edge_index
    matrix = torch.zeros(graph.num_targets, graph.num_sources, H, dtype=weights.dtype)
    return matrix.index_put((target, source), weights, accumulate=True).permute(2, 0, 1)


@pytest.mark.parametrize("backend", ["reference", "gather"])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
def test_the_operator_is_the_matrix(kind: str, bipartite: bool, backend: str) -> None:
    graph = random_graph(1, kind, bipartite=bipartite)
    weights = torch.randn(graph.num_edges, H, dtype=torch.float64, requires_grad=True)
    at_sources = torch.randn(graph.num_sources, H, D, dtype=torch.float64, requires_grad=True)
    at_targets = torch.randn(graph.num_targets, H, D, dtype=torch.float64, requires_grad=True)
    operator, matrix = EdgeOperator(graph, weights, backend), dense(graph, weights)
    assert (operator.num_targets, operator.num_sources) == (graph.num_targets, graph.num_sources)
    pairs = [
        (operator.matmul(at_sources), torch.einsum("hts,shd->thd", matrix, at_sources)),
        (operator.t_matmul(at_targets), torch.einsum("hts,thd->shd", matrix, at_targets)),
        (operator.row_sum(), matrix.sum(2).T),
    ]
    for got, expected in pairs:
        torch.testing.assert_close(got, expected)
        slope = torch.randn_like(expected)
        leaves = (weights, at_sources, at_targets)
        results = [
            torch.autograd.grad(out, leaves, slope, retain_graph=True, allow_unused=True, materialize_grads=True)
            for out in (got, expected)
        ]
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", PROPAGATORS.names())
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_every_propagator_of_the_table(name: str, kind: str) -> None:
    """Backends agree, values come out linearly, and tokens may be renumbered."""
    graph, mover = random_graph(1, kind), resolve_propagator(name)
    n = graph.num_tokens
    weights = torch.rand(graph.num_edges, H, dtype=torch.float64) / (n + 1)
    x, y = (torch.randn(n, H, D, dtype=torch.float64) for _ in range(2))
    assert_backends_equal(lambda w, x, backend: mover(EdgeOperator(graph, w, backend), x), weights, x, tolerance=1e-9)

    def run(x: Tensor) -> Tensor:
        return mover(EdgeOperator(graph, weights), x)

    torch.testing.assert_close(run(2 * x + y), 2 * run(x) + run(y))
    order = (10 * graph.target_batch + torch.rand(n)).argsort()  # within each member
    moved = TokenGraph.from_edge_index(order.argsort()[graph.edge_index], n, ptr=graph.target_ptr)
    torch.testing.assert_close(mover(EdgeOperator(moved, weights), x[order]), run(x)[order])


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_the_bound_is_one(kind: str) -> None:
    """Of each member and head; duplicate edges add up, so the norm over edges would not do."""
    for seed in range(3):
        graph = random_graph(seed, kind)
        weights = torch.rand(graph.num_edges, H, dtype=torch.float64)
        assert EdgeOperator(graph, -weights).bound().equal(EdgeOperator(graph, weights).bound())
        bound, matrix = EdgeOperator(graph, weights).bound(), dense(graph, weights)
        assert bound.shape == (graph.num_members, H)
        for member in range(graph.num_members):
            mine = graph.target_batch == member
            block = matrix[:, mine][:, :, mine]
            radius = torch.linalg.eigvals(block).abs().amax(-1)
            assert (radius <= bound[member] * (1 + 1e-9)).all()
            norms = [block.abs().sum(dim).amax(-1) for dim in (1, 2)]
            if not graph.has_duplicates:
                norms.append(torch.linalg.matrix_norm(block))
            torch.testing.assert_close(bound[member], torch.stack(norms).amin(0))
    pair = TokenGraph.from_edge_index(torch.tensor([[0, 0], [0, 0]]), 1)
    assert EdgeOperator(pair, torch.full((2, 1), 0.7)).bound().item() == pytest.approx(1.4)


def test_one_hop_by_hand() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1], [2, 2]]), 3)
    operator = EdgeOperator(graph, torch.tensor([[2.0], [3.0]]))
    values = torch.tensor([10.0, 100.0, 7.0]).reshape(3, 1, 1)
    assert OneHop()(operator, values).flatten().tolist() == [0.0, 0.0, 320.0]
    assert operator.t_matmul(values).flatten().tolist() == [14.0, 21.0, 0.0]
    assert operator.row_sum().flatten().tolist() == [0.0, 0.0, 5.0]


def test_resolve() -> None:
    mover = OneHop()
    assert resolve_propagator(mover) is mover
    assert isinstance(resolve_propagator("one_hop"), OneHop)
    with pytest.raises(ArgumentError, match="unknown propagator 'one_hopp'; did you mean 'one_hop'"):
        resolve_propagator("one_hopp")
    with pytest.raises(ArgumentTypeError, match="propagator must be a name or a Propagator, got int"):
        resolve_propagator(1)  # type: ignore[arg-type]
