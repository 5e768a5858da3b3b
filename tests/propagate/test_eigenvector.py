"""Dominant eigenvectors, and what infinitely many hops leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph
from graphattn.errors import ArgumentError
from graphattn.propagate import EdgeOperator, Eigenvector, dominant_eigenvector
from graphattn.testing import random_graph

H, D = 2, 3
F64 = torch.float64


@pytest.fixture
def graph() -> TokenGraph:
    """Members with a simple largest eigenvalue each; one has no walk that goes on."""
    line = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3)
    return TokenGraph.batch([random_graph(0, "dense"), line, random_graph(5, "self_loops")])


def projection(matrix: Tensor, values: Tensor) -> Tensor:
    """By the eigendecomposition; ``matrix [H, n, n]``, ``values [n, H, D]``."""
    eigenvalues, right = torch.linalg.eig(matrix)
    left = torch.linalg.inv(right)
    top = eigenvalues.real.argmax(-1)
    parts = [(torch.outer(right[h, :, top[h]], left[h, top[h]]).real @ values[:, h]) for h in range(matrix.shape[0])]
    return torch.stack(parts, 1)


def test_the_limit_of_many_hops(
    graph: TokenGraph, dense: Callable[..., Tensor], gradients_agree: Callable[..., None]
) -> None:
    weights = (torch.rand(graph.num_edges, H, dtype=F64) + 0.1).requires_grad_()
    values = torch.randn(graph.num_tokens, H, D, dtype=F64, requires_grad=True)
    mover = Eigenvector(tolerance=1e-13)
    got = mover(EdgeOperator(graph, weights), values)
    assert mover.report is not None and mover.report.converged
    matrix, (a, b, c) = dense(graph, weights), graph.target_ptr[1:].tolist()  # type: ignore[index]
    parts = [projection(matrix[:, :a, :a], values[:a]), 0 * values[a:b], projection(matrix[:, b:c, b:c], values[b:])]
    gradients_agree(got, torch.cat(parts), weights, values, tolerance=1e-8)
    (slope,) = torch.autograd.grad(mover(EdgeOperator(graph, weights), values).sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiated again"):
        slope.sum().backward()


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_eigenvectors(graph: TokenGraph, side: str, dense: Callable[..., Tensor]) -> None:
    weights = torch.rand(graph.num_edges, H, dtype=F64) + 0.1
    value, vector, report = dominant_eigenvector(EdgeOperator(graph, weights), side)
    assert value.shape == (3, H) and report.method == "power"
    matrix = dense(graph, weights) if side == "right" else dense(graph, weights).mT
    torch.testing.assert_close(
        (matrix @ vector.T.unsqueeze(-1)).squeeze(-1), (value[graph.target_batch] * vector).T, rtol=1e-8, atol=1e-8
    )
    assert not value[1].any() and not vector[graph.target_batch == 1].any()
    assert (vector >= -1e-12).all()
    lengths = torch.zeros(3, H, dtype=F64).index_add(0, graph.target_batch, vector.square())
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0], dtype=F64).unsqueeze(1).expand(-1, H))


def test_lanczos_equals_power_iteration_and_needs_less() -> None:
    random = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 400, (2, 1600), generator=random)
    graph = TokenGraph.batch(
        [TokenGraph.from_edge_index(edges, 400).symmetrize(), random_graph(0, "dense").symmetrize()]
    )
    weights = torch.rand(graph.num_edges, H, dtype=F64)
    weights = weights + weights[graph.reverse_edge]
    power = dominant_eigenvector(EdgeOperator(graph, weights), tolerance=1e-11)
    lanczos = dominant_eigenvector(EdgeOperator(graph, weights), symmetric=True, tolerance=1e-11)
    torch.testing.assert_close(lanczos.value, power.value, rtol=1e-11, atol=0)
    torch.testing.assert_close(lanczos.vector, power.vector, rtol=0, atol=1e-9)
    assert lanczos.report.products < power.report.products


def test_a_periodic_graph() -> None:
    """A star has the eigenvalues sqrt(n) and -sqrt(n)."""
    leaf, hub = torch.arange(1, 10), torch.zeros(9, dtype=torch.int64)
    star = TokenGraph.from_edge_index(torch.stack([torch.cat([leaf, hub]), torch.cat([hub, leaf])]), 10)
    operator = EdgeOperator(star, torch.ones(18, 1, dtype=F64))
    for symmetric in (False, True):
        value, vector, _ = dominant_eigenvector(operator, symmetric=symmetric)
        assert float(value) == pytest.approx(3.0)
        assert vector.flatten().tolist() == pytest.approx([2**-0.5] + [18**-0.5] * 9, rel=1e-8)


@pytest.mark.requires("nx")
def test_eigenvector_centrality_of_networkx() -> None:
    import networkx as nx

    club = nx.karate_club_graph()
    graph = TokenGraph.from_networkx(club)
    _, vector, _ = dominant_eigenvector(EdgeOperator(graph, torch.ones(graph.num_edges, 1, dtype=F64)), symmetric=True)
    expected = nx.eigenvector_centrality(club, max_iter=10_000, tol=1e-13, weight=None)
    assert vector.flatten().tolist() == pytest.approx([expected[node] for node in club], abs=1e-8)


def test_errors_and_warnings() -> None:
    graph = random_graph(0, "dense")
    operator = EdgeOperator(graph, torch.rand(graph.num_edges, H))
    with pytest.raises(ArgumentError, match="side must be 'right' or 'left', got 'up'"):
        dominant_eigenvector(operator, "up")
    with pytest.warns(RuntimeWarning, match="dominant_eigenvector: a residual of .* after 2 products"):
        dominant_eigenvector(operator, max_products=2, tolerance=1e-7)
    wide = random_graph(0, "dense", bipartite=True)
    with pytest.raises(ArgumentError, match="needs a square graph"):
        dominant_eigenvector(EdgeOperator(wide, torch.rand(wide.num_edges, H)))
