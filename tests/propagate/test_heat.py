"""Diffusion: the matrix exponential, by a polynomial of known error."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn import attend
from graphattn.errors import ArgumentError
from graphattn.propagate import EdgeOperator, HeatKernel
from graphattn.propagate.heat import degree
from graphattn.testing import GRAPH_KINDS, random_graph

H, D = 2, 3
F64 = torch.float64


@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize("times", [(0.0, 0.7), (3.0, 90.0)], ids=str)
def test_the_matrix_exponential(
    kind: str, times: tuple[float, float], dense: Callable[..., Tensor], gradients_agree: Callable[..., None]
) -> None:
    graph = random_graph(2, kind)
    n = graph.num_tokens
    weights = (torch.rand(graph.num_edges, H, dtype=F64) / (n / 2 + 1)).requires_grad_()
    values = torch.randn(n, H, D, dtype=F64, requires_grad=True)
    time = torch.tensor(times, dtype=F64, requires_grad=True)
    mover = HeatKernel(time)
    got = mover(EdgeOperator(graph, weights), values)
    matrix = torch.matrix_exp(time[:, None, None] * (dense(graph, weights) - torch.eye(n, dtype=F64)))
    expected = (matrix @ values.transpose(0, 1)).transpose(0, 1)
    gradients_agree(got, expected, weights, values, time, tolerance=1e-10)
    assert mover.report is not None and mover.report.converged


def test_gradcheck() -> None:
    graph = random_graph(1, "sparse")
    weights = torch.randn(graph.num_edges, H, dtype=F64, requires_grad=True)
    values = torch.randn(graph.num_tokens, H, D, dtype=F64, requires_grad=True)
    time = torch.tensor([1.0, 0.3], dtype=F64, requires_grad=True)
    for terms in (None, 5):
        assert torch.autograd.gradcheck(
            lambda w, v, t, terms=terms: HeatKernel(t, terms=terms)(EdgeOperator(graph, w), v), (weights, values, time)
        )


@pytest.mark.parametrize("x", [1e-3, 0.5, 4.0, 32.0])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-12])
def test_the_degree_is_the_least(x: float, tolerance: float) -> None:
    def left(k: int) -> float:
        return sum(math.exp(n * math.log(x) - x - math.lgamma(n + 1)) for n in range(k + 1, k + 200))

    terms, said = degree(x, tolerance)
    assert left(terms) <= tolerance and said == pytest.approx(left(terms), rel=1e-9)
    assert terms == 1 or left(terms - 1) > tolerance


def test_rows_that_sum_to_one_stay_so_and_a_given_degree_compiles() -> None:
    graph = random_graph(0, "self_loops").prepare()
    q, k = torch.randn(2, graph.num_tokens, H, D)
    ones = torch.ones(graph.num_tokens, H, D)
    torch.testing.assert_close(attend(graph, q, k, ones, propagator=HeatKernel(5.0)), ones)

    def run(q: Tensor) -> Tensor:
        return attend(graph, q, k, ones, propagator=HeatKernel(0.5, terms=14))

    torch.testing.assert_close(run(q), ones)
    torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(q), run(q))


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="time must be at least 0, got -1"):
        HeatKernel(-1.0)
    with pytest.raises(ArgumentError, match="terms must be an integer of at least 1 or None, got 0"):
        HeatKernel(1.0, terms=0)
    with pytest.raises(ArgumentError, match="tolerance must be between 0 and 1, got 2"):
        HeatKernel(1.0, tolerance=2.0)
    graph = random_graph(0, "dense")
    operator = EdgeOperator(graph, torch.full((graph.num_edges, H), 1e6))
    with pytest.raises(ArgumentError, match="HeatKernel: time 5 with weights whose norm is bounded by"):
        HeatKernel(5.0)(operator, torch.zeros(graph.num_tokens, H, D))
