"""Dense patterns whose edges are never listed, against lists of the same edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, attend, explain, patterns
from graphattn.attention import edge_weights
from graphattn.errors import ArgumentError
from graphattn.propagate import (
    EdgeOperator,
    HeatKernel,
    Neumann,
    PairOperator,
    PersonalizedPageRank,
    Propagator,
    Resolvent,
    pairs,
)

H, D = 2, 4
F64 = torch.float64
GRAPHS = {
    "complete": patterns.complete(9),
    "bipartite": patterns.complete(7, 5),
    "causal": patterns.causal(9),
    "prefix": patterns.prefix(9, 3),
    "blocks": patterns.blocks(torch.tensor([0, 5, 6, 6, 13])),
    "equal blocks": patterns.blocks(torch.tensor([0, 4, 8])),
}
CHOICES = [
    (score, rule)
    for score in ("dot", "relu_dot")
    for rule in ("softmax", "sigmoid", "frobenius", "sum", "symmetric", "flow")
    if score == "relu_dot" or rule not in ("sum", "symmetric", "flow")
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pairs._BLOCK, "cpu", 60)


def listed(graph: TokenGraph) -> TokenGraph:
    sizes: dict[str, Any] = {"num_targets": graph.num_targets, "num_sources": graph.num_sources}
    return TokenGraph.from_edge_index(
        graph.edge_index, **sizes, target_ptr=graph.target_ptr, source_ptr=graph.source_ptr
    )


def tokens(graph: TokenGraph, *lead: int) -> list[Tensor]:
    sizes = (graph.num_targets, D), (graph.num_sources, D), (graph.num_sources, 3)
    return [torch.randn(*lead, n, H, d, dtype=F64, requires_grad=True) for n, d in sizes]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("score", "rule"), CHOICES)
def test_equals_the_list_of_edges(name: str, score: str, rule: str, gradients_agree: Callable[..., None]) -> None:
    graph = GRAPHS[name]
    if (name, rule) == ("causal", "flow"):
        q, k, v = tokens(graph)
        with pytest.raises(ArgumentError, match="would leak the future"):
            attend(graph, q, k, v, score=score, normalizer=rule)
        return
    movers: list[str | Propagator] = ["one_hop"]
    if graph.is_square:
        movers += [Neumann(3, torch.tensor([0.1, 0.05], dtype=F64)), Resolvent(0.03, tolerance=1e-13)]
    for mover in movers:
        for lead in ((), (2,)):
            q, k, v = tokens(graph, *lead)
            options: dict[str, Any] = {"score": score, "normalizer": rule, "propagator": mover}
            for more in ({}, {"scale": 0.3, "clamp": 0.4}):
                got = attend(graph, q, k, v, **options, **more)
                expected = attend(listed(graph), q, k, v, **options, **more, backend="reference")
                gradients_agree(got, expected, q, k, v, tolerance=1e-10)


@pytest.mark.parametrize(
    "mover", [HeatKernel(2.0), PersonalizedPageRank(0.2, method="gmres", tolerance=1e-13)], ids=str
)
def test_other_propagators(mover: Propagator, gradients_agree: Callable[..., None]) -> None:
    graph = GRAPHS["blocks"]
    q, k, v = tokens(graph)
    got = attend(graph, q, k, v, propagator=mover)
    gradients_agree(got, attend(listed(graph), q, k, v, propagator=mover), q, k, v)


@pytest.mark.parametrize("name", ["bipartite", "causal", "blocks"])
def test_the_operator_is_the_matrix(name: str, gradients_agree: Callable[..., None]) -> None:
    graph = GRAPHS[name]
    q, k, v = tokens(graph)
    row, column, shift = (torch.rand(n, H, dtype=F64) for n in (graph.num_targets, graph.num_sources, len(q)))
    operator = PairOperator(graph, q, k, torch.tanh, torch.exp, float("-inf"), row, column, shift)
    source, target = graph.edge_index
    weights = ((q[target] * k[source]).sum(-1).tanh() - shift[target]).exp() * row[target] * column[source]
    edges = EdgeOperator(listed(graph), weights)
    assert (operator.num_targets, operator.num_sources) == (edges.num_targets, edges.num_sources)
    at_target = torch.randn(graph.num_targets, H, 2, dtype=F64)
    for got, expected in (
        (operator.matmul(v), edges.matmul(v)),
        (operator.t_matmul(at_target), edges.t_matmul(at_target)),
        (operator.row_sum(), edges.row_sum()),
        (operator.column_sum(), edges.t_matmul(torch.ones_like(at_target))[..., 0]),
        (operator.square_sum(), EdgeOperator(listed(graph), weights.square()).row_sum()),
    ):
        gradients_agree(got, expected, q, k, v)
    if graph.is_square:
        torch.testing.assert_close(operator.bound(), edges.bound())


def test_no_edge_is_listed_and_memory_is_that_of_a_block(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 700
    monkeypatch.setitem(pairs._BLOCK, "cpu", 8 * n)
    for score, rule in (("dot", "softmax"), ("relu_dot", "symmetric"), ("relu_dot", "flow")):
        graph = patterns.complete(n)
        q, k, v = (torch.randn(n, 1, 2, requires_grad=True) for _ in range(3))
        with live() as memory:
            out = attend(graph, q, k, v, score=score, normalizer=rule, propagator=Neumann(8, 0.9))
            out.sum().backward()
        assert graph._csr is None
        assert memory.peak < 0.3 * 4 * n * n, f"{memory.peak} bytes, where the matrix has {4 * n * n}"


def test_the_future_does_not_leak() -> None:
    """A causal graph: what comes later changes nothing, the norm of the whole apart (softmax has none)."""
    graph = patterns.causal(9)
    q, k, v = (x.detach() for x in tokens(graph))
    out = attend(graph, q, k, v, propagator=Neumann(4, 0.9))
    for x in (q, k, v):
        x[5:] = torch.randn_like(x[5:])
    torch.testing.assert_close(attend(graph, q, k, v, propagator=Neumann(4, 0.9))[:5], out[:5], rtol=0, atol=0)


def test_what_needs_edges_lists_them() -> None:
    graph = patterns.complete(6)
    q, k, v = (x.detach() for x in tokens(graph))
    options: dict[str, Any] = {"score": "relu_dot", "normalizer": "frobenius"}
    weights = attend(graph, q, k, v, **options, need_weights=True).weights
    torch.testing.assert_close(weights, edge_weights(graph, q, k, **options))
    bias = torch.randn(36, H, dtype=F64)
    biased = attend(graph, q, k, v, **options, edge_bias=bias)
    torch.testing.assert_close(biased, attend(listed(graph), q, k, v, **options, edge_bias=bias))
    assert "no edge of it is listed" in str(explain(graph, q, k, v, **options, propagator="neumann"))
    assert "no edge of it is listed" not in str(explain(graph, q, k, v, **options, edge_bias=bias))
    assert "no edge of it is listed" not in str(explain(listed(graph), q, k, v, **options))


def test_only_one_derivative() -> None:
    graph = patterns.complete(6)
    q, k, v = tokens(graph)
    out = attend(graph, q, k, v, normalizer="sigmoid")
    (slope,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiated again"):
        slope.sum().backward()
