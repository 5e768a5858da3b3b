"""The truncated series: its value, its exact gradient, the memory that the gradient takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, attend
from graphattn.attention import propagate
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.propagate import EdgeOperator, Neumann, Resolvent
from graphattn.propagate._series import series
from graphattn.testing import GRAPH_KINDS, random_graph

H, D = 2, 3


def leaves(graph: TokenGraph) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.randn(graph.num_edges, H, dtype=torch.float64) / 3
    values = torch.randn(graph.num_sources, H, D, dtype=torch.float64)
    gamma = torch.tensor([0.9, 0.5], dtype=torch.float64)
    return weights.requires_grad_(), values.requires_grad_(), gamma.requires_grad_()


@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize(("hops", "include_self"), [(1, False), (2, True), (7, False)])
def test_the_sum_of_powers(
    kind: str, hops: int, include_self: bool, dense: Callable[..., Tensor], gradients_agree: Callable[..., None]
) -> None:
    graph = random_graph(3, kind)
    weights, values, gamma = leaves(graph)
    got = Neumann(hops, gamma, include_self=include_self)(EdgeOperator(graph, weights), values)
    matrix = gamma[:, None, None] * dense(graph, weights)
    power, total = torch.eye(graph.num_tokens, dtype=torch.float64).expand(H, -1, -1), 0.0
    for k in range(hops + 1):
        total = total + (power if k or include_self else 0.0 * power)
        power = power @ matrix
    gradients_agree(got, (total @ values.transpose(0, 1)).transpose(0, 1), weights, values, gamma)


@pytest.mark.parametrize("hops", [1, 2, 3, 6, 13])
def test_gradcheck_of_what_is_truncated(hops: int) -> None:
    graph = random_graph(1, "sparse")

    def run(weights: Tensor, values: Tensor, gamma: Tensor) -> Tensor:
        return Neumann(hops, gamma)(EdgeOperator(graph, weights), values)

    assert torch.autograd.gradcheck(run, leaves(graph))
    if hops == 3:
        assert torch.autograd.gradgradcheck(run, leaves(graph))


def test_few_hops_have_a_gradient_of_their_own() -> None:
    """It is not that of the sum to infinity."""
    graph = random_graph(1, "dense")
    weights, values, _ = leaves(graph)
    weights = (weights.detach().abs() / graph.num_tokens).requires_grad_()
    gradients = [
        torch.autograd.grad(mover(EdgeOperator(graph, weights), values).sum(), weights)[0]
        for mover in (Neumann(2, 0.9), Neumann(200, 0.9), Resolvent(0.9, include_self=False))
    ]
    torch.testing.assert_close(gradients[1], gradients[2])
    assert (gradients[0] - gradients[2]).abs().max() > 1e-3


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_states_in_memory_grow_as_the_logarithm(learned: bool, live: Any) -> None:
    graph = random_graph(0, "dense").prepare()
    weights, values, gamma = leaves(graph)
    values = torch.randn(graph.num_sources, H, 500, dtype=torch.float64, requires_grad=True)  # larger than all else
    state = values.numel() * 8
    for hops in (2, 4, 8, 16, 32, 64):
        with live() as memory:
            out = Neumann(hops, gamma if learned else 0.5)(EdgeOperator(graph, weights), values)
            kept = memory.now / state
            out.sum().backward()
        slots = math.ceil(math.log2(hops))
        assert kept < slots + 2.5 + learned, f"{hops} hops keep {kept} states"
        assert memory.peak / state < slots + 7.5 + 2 * learned, f"{hops} hops take {memory.peak / state} states"


@pytest.mark.parametrize(("hops", "most"), [(1, 0), (4, 4), (64, 4), (200, 4)])
def test_how_often_a_product_is_computed(hops: int, most: int) -> None:
    graph = random_graph(0, "dense")
    weights, values, _ = leaves(graph)
    operator = EdgeOperator(graph, weights)
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return EdgeOperator.matmul(operator, x)

    operator.matmul = counted  # type: ignore[method-assign]
    out = series(operator, values, [0.5] * hops)
    assert calls == hops
    out.sum().backward()
    assert calls <= hops + most * hops
    with torch.no_grad():
        calls = 0
        series(operator, values, [0.5] * hops)
        assert calls == hops


@pytest.mark.parametrize("axes", ["", "b", "h", "bh"])
def test_a_discount_for_each_head_wherever_heads_are(axes: str, gradients_agree: Callable[..., None]) -> None:
    """Leading dimensions become heads, heads become copies of tokens: each keeps its own discount."""
    members = TokenGraph.batch([random_graph(0, "dense"), random_graph(1, "sparse")])
    other = TokenGraph.from_edge_index(members.edge_index.flip(0), members.num_tokens, ptr=members.target_ptr)
    graphs = [members, other]
    graph = members
    if axes == "h":
        graph = TokenGraph.per_head(graphs)
    if axes == "b":
        graph = TokenGraph.stack([members, other, members])
    if axes == "bh":
        graph = TokenGraph.stack(
            [TokenGraph.per_head(graphs), TokenGraph.per_head(graphs[::-1]), TokenGraph.per_head(graphs)]
        )
    n = graph.num_tokens
    q, k, v = (torch.randn(3, n, H, D, dtype=torch.float64, requires_grad=True) for _ in range(3))
    gamma = torch.tensor([0.9, 0.2], dtype=torch.float64, requires_grad=True)
    got = attend(graph, q, k, v, propagator=Neumann(3, gamma))
    expected = []
    for entry in range(3):
        heads = []
        for head in range(H):
            which = {
                "": members,
                "h": graphs[head],
                "b": [members, other, members][entry],
                "bh": [graphs, graphs[::-1], graphs][entry][head],
            }[axes]
            x = [t[entry, :, head : head + 1] for t in (q, k, v)]
            heads.append(attend(which, *x, propagator=Neumann(3, gamma[head])))
        expected.append(torch.cat(heads, 1))
    gradients_agree(got, torch.stack(expected), q, k, v, gamma)


def test_members_are_each_for_itself() -> None:
    graphs = [random_graph(seed, "dense") for seed in range(3)]
    batch = TokenGraph.batch(graphs)
    x = torch.randn(batch.num_tokens, H, D)
    out = attend(batch, x, x, x, propagator=Neumann(3))
    parts = x.split([g.num_tokens for g in graphs])
    torch.testing.assert_close(
        out, torch.cat([attend(g, p, p, p, propagator=Neumann(3)) for g, p in zip(graphs, parts, strict=True)])
    )


def test_compiles_as_one_graph() -> None:
    graph = random_graph(0, "dense").prepare()
    q = torch.randn(graph.num_tokens, H, D, requires_grad=True)
    gamma = torch.tensor([0.9, 0.2], requires_grad=True)

    def run(q: Tensor, gamma: Tensor) -> Tensor:
        return attend(graph, q, q, q, score="relu_dot", normalizer="frobenius", propagator=Neumann(6, gamma))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    results = []
    for function in (run, compiled):
        out = function(q, gamma)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, gamma))))
    torch.testing.assert_close(*results)


def test_a_half_type_is_summed_in_single() -> None:
    graph = random_graph(0, "dense")
    weights, x = torch.rand(graph.num_edges, H) / 8, torch.randn(graph.num_tokens, H, D)
    low = propagate(graph, weights.bfloat16(), x.bfloat16(), Neumann(20))
    assert low.dtype == torch.bfloat16
    exact = propagate(graph, weights.bfloat16().double(), x.bfloat16().double(), Neumann(20))
    torch.testing.assert_close(low.double(), exact, rtol=2**-8, atol=1e-4)  # one rounding, at the end


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="hops must be an integer of at least 1, got 0"):
        Neumann(0)
    with pytest.raises(ArgumentError, match="gamma must be at least 0, got -1"):
        Neumann(2, -1.0)
    with pytest.raises(ArgumentTypeError, match="gamma must be a number or a tensor"):
        Neumann(2, "0.9")  # type: ignore[arg-type]
    graph = random_graph(0, "dense", bipartite=True)
    x = torch.zeros(graph.num_sources, H, D)
    with pytest.raises(ArgumentError, match="needs a square graph"):
        propagate(graph, torch.zeros(graph.num_edges, H), x, "neumann")
    square = random_graph(0, "dense")
    with pytest.raises(ArgumentError, match=r"a number for each head must be \[\] or \[2\], got \[3\]"):
        propagate(square, torch.zeros(square.num_edges, H), x[: square.num_tokens], Neumann(2, torch.ones(3)))
    assert repr(Neumann(3, 0.5)) == "Neumann(hops=3, gamma=0.5, include_self=False)"
