"""What attend computes: numbers by hand, the dense formula, the published formula, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.attention import attend, edge_weights
from graphattn.graph import TokenGraph
from graphattn.testing import assert_backends_equal, eager_attention, random_graph

Draw = Callable[..., Tensor]
H, D, D_V = 2, 4, 3
BACKENDS = pytest.mark.parametrize("backend", ["reference", "gather"])


def inputs(graph: TokenGraph, draw: Draw) -> list[Tensor]:
    return [draw(graph.num_targets, H, D), draw(graph.num_sources, H, D), draw(graph.num_sources, H, D_V)]


@BACKENDS
def test_by_hand(backend: str) -> None:
    """Tokens 0 and 1 read token 1; token 0 reads itself, too; token 2 reads nothing."""
    graph = TokenGraph.from_edge_index(torch.tensor([[1, 1, 0], [1, 0, 0]]), 3)
    q = torch.tensor([math.log(3), 1.0, 1.0]).reshape(3, 1, 1)
    k = torch.tensor([0.0, 1.0, 9.0]).reshape(3, 1, 1)
    v = torch.tensor([[4.0, 0.0], [8.0, 4.0], [9.0, 9.0]]).reshape(3, 1, 2)
    result = attend(graph, q, k, v, need_weights=True, need_lse=True, backend=backend)
    expected = torch.tensor([[7.0, 3.0], [8.0, 4.0], [0.0, 0.0]]).unsqueeze(1)
    torch.testing.assert_close(result.out, expected)
    torch.testing.assert_close(attend(graph, q, k, v, backend=backend), expected)
    torch.testing.assert_close(result.weights, torch.tensor([[1.0], [0.75], [0.25]]))
    torch.testing.assert_close(result.lse, torch.tensor([[math.log(4)], [1.0], [-math.inf]]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_dense_masked_softmax_of_clamped_logits(dtype: torch.dtype, tolerance: float, draw: Draw) -> None:
    """softmax(clamp(Q K^T / sqrt(d)) + log mask) V (invariant 1 of the graph transformer)."""
    graph = random_graph(3, "self_loops")  # every node reads something
    q, k, v = (3 * x.to(dtype) for x in inputs(graph, draw))
    mask = graph.to_dense()
    logits = torch.einsum("thd,shd->hts", q, k) / D**0.5
    assert (logits.abs() > 5).any()
    dense = logits.clamp(-5, 5).masked_fill(~mask, -math.inf).softmax(-1)
    expected = torch.einsum("hts,shd->thd", dense, v)
    out = attend(graph, q, k, v, clamp=5.0)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_the_edge_gated_form_is_the_published_formula_up_to_its_epsilon(draw: Draw) -> None:
    """sum w v / (z + 1e-6): relative error at most 1e-6 e^5 (invariant 2)."""
    graph = random_graph(3, "self_loops")
    q, k, v = inputs(graph, draw)
    v = v.abs()  # so that a relative error of the sum is one of the ratio
    gate = draw(graph.num_edges, H, D)
    source, target = graph.edge_index
    weight = ((k[source] * q[target] / D**0.5) * gate).sum(-1).clamp(-5, 5).exp()
    z = torch.zeros(graph.num_tokens, H, dtype=v.dtype).index_add(0, target, weight)
    total = torch.zeros_like(v).index_add(0, target, weight.unsqueeze(-1) * v[source])
    published = total / (z.unsqueeze(-1) + 1e-6)
    out = attend(graph, q, k, v, edge_gate=gate, clamp=5.0)
    error = ((out - published) / out).abs()
    assert 0 < error.max() <= 1e-6 * math.exp(5)


@pytest.mark.parametrize("clamp", [5.0, 1.0])
def test_clamp_bounds_the_weights(clamp: float, draw: Draw) -> None:
    """In a neighbourhood of n, between e^-2c / (e^-2c + n - 1) and 1 / (1 + (n - 1) e^-2c) (invariant 3)."""
    graph = random_graph(3, "hub")
    q, k, _ = inputs(graph, draw)
    n = graph.in_degree[graph.edge_index[1]].double().unsqueeze(1)
    ratio = math.exp(-2 * clamp)
    lower, upper = ratio / (ratio + n - 1), 1 / (1 + (n - 1) * ratio)
    weights = edge_weights(graph, 50 * q, k, clamp=clamp)
    assert (weights >= lower - 1e-12).all() and (weights <= upper + 1e-12).all()
    # Both bounds are reached where one edge of a row differs from all others.
    first = torch.zeros(graph.num_edges, 1, dtype=torch.float64)
    first[graph.rowptr[:-1][graph.in_degree > 0].long()] = 1
    first = first[torch.argsort(graph.edge_id.long())]  # from rows to the caller's order
    low = edge_weights(graph, None, None, score=99 - 198 * first, clamp=clamp)
    high = edge_weights(graph, None, None, score=198 * first - 99, clamp=clamp)
    torch.testing.assert_close(low[first == 1], lower[first == 1])
    torch.testing.assert_close(high[first == 1], upper[first == 1])


def test_the_eager_oracle(graph: TokenGraph, draw: Draw) -> None:
    """Plain indexing without any of the kernels."""
    q, k, v = inputs(graph, draw)
    bias, gate = draw(graph.num_edges, H), draw(graph.num_edges, H, D)
    options = {"edge_bias": bias, "edge_gate": gate, "clamp": 1.0, "scale": 0.7}
    torch.testing.assert_close(
        attend(graph, q, k, v, **options), eager_attention(graph, q, k, v, **options), rtol=1e-12, atol=1e-12
    )


_OPTIONS = {
    "plain": {},
    "bias-E": {"scale": 0.4},
    "bias-EH": {"clamp": 0.8},
    "gate": {"clamp": 0.8},
    "weights": {"need_weights": True, "clamp": 0.8},
    "dropout": {"dropout_p": 0.3, "dropout_seed": torch.tensor([1, 2])},
    "weights-dropout-bias-EH-gate": {"need_weights": True, "dropout_p": 0.3, "dropout_seed": torch.tensor([1, 2])},
}


@pytest.mark.parametrize("option", _OPTIONS)
def test_gather_equals_the_reference(graph: TokenGraph, draw: Draw, option: str) -> None:
    q, k, v = inputs(graph, draw)
    bias = draw(graph.num_edges, *([H] if "bias-EH" in option else [])) if "bias" in option else None
    gate = draw(graph.num_edges, H, D) if "gate" in option else None

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gate: Tensor, backend: str) -> tuple[Tensor | None, ...]:
        options = _OPTIONS[option]
        return tuple(attend(graph, q, k, v, edge_bias=bias, edge_gate=gate, need_lse=True, backend=backend, **options))

    assert_backends_equal(run, q, k, v, bias, gate)


def test_both_routes_agree(graph: TokenGraph, draw: Draw) -> None:
    """The fused operation, and the three sparse operations that ``need_weights`` asks for; dropout included."""
    leaves = [x.requires_grad_() for x in [*inputs(graph, draw), draw(graph.num_edges, H), draw(graph.num_edges, H, D)]]
    q, k, v, bias, gate = leaves
    options = {"edge_bias": bias, "edge_gate": gate, "clamp": 1.0, "dropout_p": 0.3}
    seed = torch.tensor([4, 5])
    fused = attend(graph, q, k, v, need_lse=True, dropout_seed=seed, **options)
    steps = attend(graph, q, k, v, need_lse=True, need_weights=True, dropout_seed=seed, **options)
    torch.testing.assert_close((fused.out, fused.lse), (steps.out, steps.lse))
    slope = draw(*fused.out.shape)
    torch.testing.assert_close(
        torch.autograd.grad(fused.out, leaves, slope), torch.autograd.grad(steps.out, leaves, slope)
    )


@BACKENDS
def test_a_target_without_an_edge_gets_zero_and_finite_gradients(backend: str, draw: Draw) -> None:
    graph = random_graph(2, "empty_rows")
    empty = graph.in_degree == 0
    assert empty.any() and not empty.all()
    q, k, v = (x.requires_grad_() for x in inputs(graph, draw))
    out, _, lse, _ = attend(graph, q, k, v, need_lse=True, backend=backend)
    assert (out[empty] == 0).all() and (lse[empty] == -math.inf).all() and lse[~empty].isfinite().all()
    for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)):
        assert gradient.isfinite().all()
    grad_q = torch.autograd.grad(attend(graph, q, k, v, backend=backend).square().sum(), q)[0]
    assert (grad_q[empty] == 0).all() and (grad_q[~empty] != 0).any()


@BACKENDS
def test_duplicate_edges_count_twice(backend: str, draw: Draw) -> None:
    once = TokenGraph.from_edge_index(torch.tensor([[0, 1], [0, 0]]), 2)
    twice = TokenGraph.from_edge_index(torch.tensor([[0, 1, 1], [0, 0, 0]]), 2)
    q, k, v = inputs(once, draw)
    counted = attend(once, q, k, v, edge_bias=torch.tensor([0.0, math.log(2)], dtype=q.dtype), backend=backend)
    torch.testing.assert_close(attend(twice, q, k, v, backend=backend), counted)


def test_the_order_of_the_edges_does_not_matter(graph: TokenGraph, draw: Draw) -> None:
    q, k, v = inputs(graph, draw)
    bias = draw(graph.num_edges, H)
    order = torch.randperm(graph.num_edges)
    moved = TokenGraph.from_edge_index(
        graph.edge_index[:, order], num_targets=graph.num_targets, num_sources=graph.num_sources
    )
    out, weights, *_ = attend(graph, q, k, v, edge_bias=bias, need_weights=True)
    again, moved_weights, *_ = attend(moved, q, k, v, edge_bias=bias[order], need_weights=True)
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(moved_weights, weights[order])


def test_a_batch_equals_its_members(draw: Draw) -> None:
    members = [random_graph(n, kind) for n, kind in enumerate(["hub", "no_edges", "one_token", "duplicates"])]
    batch = TokenGraph.batch(members)
    q, k, v = inputs(batch, draw)
    bias = draw(batch.num_edges, H)
    out = attend(batch, q, k, v, edge_bias=bias)
    token = edge = 0
    for member in members:
        mine, edges = slice(token, token + member.num_tokens), slice(edge, edge + member.num_edges)
        alone = attend(member, q[mine], k[mine], v[mine], edge_bias=bias[edges])
        assert torch.equal(out[mine], alone)
        token, edge = mine.stop, edges.stop
    assert (token, edge) == (batch.num_tokens, batch.num_edges)
