"""torch.compile and torch.export of functions and modules that call attend."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from graphattn import patterns
from graphattn.attention import AttentionOutput, attend, merge
from graphattn.graph import TokenGraph
from graphattn.testing import random_graph

Draw = Callable[..., Tensor]
H, D = 2, 4
SEED = torch.tensor([1, 2])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A compiler that counts and runs what it gets as it is, or through AOTAutograd (slow to trace)."""

    def __init__(self, *, aot: bool = False) -> None:
        self.count, self.aot = 0, aot

    def __call__(self, module: nn.Module, inputs: list[Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.debugging import aot_eager, eager

        self.count += 1
        return aot_eager(module, inputs) if self.aot else eager(module, inputs)


def fused(graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return attend(graph, q, k, v, edge_bias=bias, clamp=2.0, dropout_p=0.3, dropout_seed=SEED)


def steps(graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Everything else: weights and lse, a rule for the bias, another normaliser, merge."""
    result = attend(graph, q, k, v, edge_bias=bias, clamp=2.0, need_weights=True, need_lse=True)
    ruled = attend(graph, q, k, v, edge_bias=lambda t, s, h: -(t - s).abs() * (h + 1.0), normalizer="sigmoid")
    assert isinstance(result, AttentionOutput) and isinstance(ruled, Tensor)
    return merge([result, result]).out + ruled * result.weights.sum() + result.lse.exp().unsqueeze(-1)


def gradients(
    function: Callable[..., Tensor], graph: TokenGraph, inputs: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(graph, *leaves)
    return out, torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize(("function", "lead"), [(fused, ()), (steps, (3,))], ids=["fused", "steps-leading"])
def test_one_compiled_graph_serves_every_size(
    function: Callable[..., Tensor], lead: tuple[int, ...], draw: Draw
) -> None:
    counter = Counter(aot=function is fused)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for seed in (1, 2, 3):
        graph = random_graph(seed, "hub").prepare()
        inputs = [draw(*lead, graph.num_tokens, H, D) for _ in range(3)] + [draw(graph.num_edges, H)]
        torch.testing.assert_close(gradients(compiled, graph, inputs), gradients(function, graph, inputs))
    assert counter.count <= 2  # one recompilation at most


def test_the_graph_may_be_made_inside_the_compiled_function(draw: Draw) -> None:
    def layer(edge_index: Tensor, x: Tensor) -> Tensor:
        out = attend(TokenGraph.from_edge_index(edge_index, x.shape[0], validate=False), x, x, x)
        assert isinstance(out, Tensor)
        return out

    counter = Counter()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for seed in (1, 2, 3):
        graph = random_graph(seed, "hub")
        x = draw(graph.num_tokens, H, D)
        torch.testing.assert_close(compiled(graph.edge_index, x), layer(graph.edge_index, x))
    assert counter.count <= 2


def test_autocast_compiles(draw: Draw) -> None:
    graph = random_graph(1, "hub").prepare()
    x, project = torch.randn(graph.num_tokens, H * D), nn.Linear(H * D, H * D)

    def layer(x: Tensor) -> Tensor:
        q = project(x).unflatten(-1, (H, D))
        out = attend(graph, q, q, x.unflatten(-1, (H, D)))
        assert isinstance(out, Tensor)
        return out

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), layer(x))
        assert compiled(x).dtype == torch.bfloat16


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(D, D, dtype=torch.float64)

    def forward(self, x: Tensor, graph: TokenGraph) -> Tensor:
        h = self.project(x)
        out = attend(graph, h, h, h, clamp=2.0)
        assert isinstance(out, Tensor)
        return out


def test_export_with_a_graph_as_input(tmp_path: object, draw: Draw) -> None:
    """A TokenGraph is a pytree: its arrays are inputs, so another graph of the same sizes may follow."""
    graph = random_graph(1, "hub").prepare()
    x = draw(graph.num_tokens, H, D)
    module = Layer()
    program = torch.export.export(module, (x, graph))
    path = f"{tmp_path}/layer.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    torch.testing.assert_close(loaded(x, graph), module(x, graph))
    turned = TokenGraph.from_edge_index((graph.edge_index + 1) % graph.num_tokens, graph.num_tokens).prepare()
    torch.testing.assert_close(loaded(x, turned), module(x, turned))


def test_export_with_a_pattern_inside(draw: Draw) -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.graph = Layer(), patterns.causal(6).prepare()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, self.graph)

    module, x = Causal(), draw(6, H, D)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


def test_checkpointing_recomputes_the_same_dropout(draw: Draw) -> None:
    from torch.utils.checkpoint import checkpoint

    graph = random_graph(1, "hub")
    x = draw(graph.num_tokens, H, D).requires_grad_()

    def layer(x: Tensor) -> Tensor:
        out = attend(graph, x, x, x, dropout_p=0.5, dropout_seed=SEED)
        assert isinstance(out, Tensor)
        return out

    again = checkpoint(layer, x, use_reentrant=False)
    torch.testing.assert_close(
        torch.autograd.grad(again.square().sum(), x), torch.autograd.grad(layer(x).square().sum(), x)
    )
