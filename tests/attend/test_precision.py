"""Half types and autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphattn import patterns
from graphattn.attention import attend, edge_weights
from graphattn.testing import assert_within_budget, eager_attention, random_graph

Draw = Callable[..., Tensor]
H, D = 2, 16
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("need_weights", [False, True], ids=["fused", "steps"])
def test_both_routes_are_as_precise_as_plain_code(dtype: torch.dtype, need_weights: bool, draw: Draw) -> None:
    graph = patterns.window(80, 12)
    inputs = [draw(80, H, D, dtype=dtype) for _ in range(3)]
    slope = draw(80, H, D, dtype=dtype)

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(dtype))]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = attend(graph, q, k, v, need_weights=need_weights)
        return result.out if need_weights else result

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return eager_attention(graph, q, k, v)

    results = run(ours, dtype), run(eager, dtype), run(eager, torch.float64)
    for name, actual, plain, exact in zip(("out", "q", "k", "v"), *results, strict=True):
        assert_within_budget(actual, plain, exact, what=name)


@HALVES
@pytest.mark.parametrize("need_weights", [False, True], ids=["fused", "steps"])
def test_scores_are_not_rounded_before_they_are_scaled(dtype: torch.dtype, need_weights: bool) -> None:
    """q . k = 64 * 48^2 = 147,456 exceeds float16, and its scaled value 18,432 does not."""
    graph = patterns.complete(2)
    x = torch.full((2, 1, 64), 48.0, dtype=dtype)
    result = attend(graph, x, x, x, need_weights=need_weights, need_lse=True)
    assert result.out.dtype == dtype and (result.out == 48).all()
    torch.testing.assert_close(result.lse, torch.full((2, 1), 18432.693))


@HALVES
def test_outputs_have_the_dtype_of_the_values_and_lse_is_float32(dtype: torch.dtype) -> None:
    graph = random_graph(1, "hub")
    x = torch.randn(graph.num_tokens, H, D).to(dtype)
    result = attend(graph, x, x, x, need_weights=True, need_lse=True)
    assert (result.out.dtype, result.weights.dtype, result.lse.dtype) == (dtype, dtype, torch.float32)
    assert edge_weights(graph, x, x).dtype == dtype
    assert attend(graph, x.double(), x.double(), x.double(), need_lse=True).lse.dtype == torch.float64


@pytest.mark.parametrize("need_weights", [False, True], ids=["fused", "steps"])
def test_autocast(need_weights: bool) -> None:
    """Projections come out in bfloat16, biases in float32: attend brings them together, as torch's attention does."""
    graph = random_graph(1, "hub")
    x, project = torch.randn(graph.num_tokens, H * D), nn.Linear(H * D, H * D)
    bias = torch.randn(graph.num_edges, H, requires_grad=True)

    def run() -> Tensor:
        q = project(x).unflatten(-1, (H, D))
        v = x.unflatten(-1, (H, D))  # float32, never cast by anybody else
        result = attend(graph, q, q, v, edge_bias=bias, need_weights=need_weights)
        return result.out if need_weights else result

    exact = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert bias.grad.dtype == torch.float32 and bias.grad.isfinite().all() and (bias.grad != 0).any()


def test_autocast_leaves_float64_alone() -> None:
    graph = random_graph(1, "hub")
    x = torch.randn(graph.num_tokens, H, D, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(graph, x, x, x).dtype == torch.float64
