"""Mixed precision, torch.compile and torch.export."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn.testing import require_or_skip

require_or_skip("pyg")

from graphattn import TokenGraph  # noqa: E402
from graphattn.conv import GATConv, GATv2Conv, GraphTransformerConv, TransformerConv  # noqa: E402

# TransformerConv projects edge features at the targets (3 <= 4 channels) or at the edges (3 > 2 channels).
LAYERS = {
    "transformer": lambda: TransformerConv(6, 4, heads=2),
    "transformer, few edge features": lambda: TransformerConv(6, 4, heads=2, edge_dim=3, beta=True),
    "transformer, many edge features": lambda: TransformerConv(6, 2, heads=2, edge_dim=3),
    "graph transformer": lambda: GraphTransformerConv(6, 4, heads=2, edge_dim=3),
    "gat": lambda: GATConv(6, 4, heads=2, edge_dim=3, residual=True),
    "gatv2": lambda: GATv2Conv(6, 4, heads=2, share_weights=True),
}
layers = pytest.mark.parametrize("name", LAYERS)


def inputs(conv: nn.Module, s: Any) -> tuple[Tensor, ...]:
    given = (s.x, s.edge_index, s.edge_attr)
    return given[:2] if conv.edge_dim is None else given


@layers
def test_autocast(name: str, sample: Any) -> None:
    s = sample(20, 80, dtype=torch.float32)
    conv = LAYERS[name]()
    expected = conv(*inputs(conv, s))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, (_, alpha) = conv(*inputs(conv, s), return_attention_weights=True)
        fused = conv(*inputs(conv, s))
    assert out.dtype == fused.dtype == torch.bfloat16
    for rows in (out, fused):
        torch.testing.assert_close(rows.float(), expected, rtol=0.05, atol=0.05)
    assert (alpha.float().sum() - 20 * 2).abs() < 0.5
    fused.float().square().sum().backward()
    for parameter in conv.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


@pytest.fixture
def fresh_compiler() -> Iterator[Any]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def check_compiled(conv: nn.Module, counters: Any, sample: Any, backend: str, *, as_graph: bool) -> None:
    compiled = torch.compile(conv, fullgraph=True, backend=backend)
    for nodes, edges in ((9, 30), (14, 50), (23, 71)):
        s = sample(nodes, edges, dtype=torch.float32)
        s.x.requires_grad_(), s.edge_attr.requires_grad_()
        given = list(inputs(conv, s))
        if as_graph:
            given[1] = TokenGraph.from_edge_index(s.edge_index, nodes).prepare()
        leaves = [*(s.x, s.edge_attr)[: len(given) - 1], *conv.parameters()]
        results = []
        for layer in (conv, compiled):
            out = layer(*given)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    # The first size, and one more time for all others.
    assert counters["stats"]["unique_graphs"] <= 2


@layers
def test_compile_at_most_one_recompilation(name: str, sample: Any, fresh_compiler: Any) -> None:
    check_compiled(LAYERS[name](), fresh_compiler, sample, "aot_eager", as_graph=False)


@pytest.mark.parametrize("name", ["transformer", "gatv2"])
def test_compile_with_a_prepared_graph(name: str, sample: Any, fresh_compiler: Any) -> None:
    check_compiled(LAYERS[name](), fresh_compiler, sample, "aot_eager", as_graph=True)


@pytest.mark.slow
@layers
def test_compile_with_inductor(name: str, sample: Any, fresh_compiler: Any) -> None:
    check_compiled(LAYERS[name](), fresh_compiler, sample, "inductor", as_graph=False)


@layers
def test_exported_and_loaded_again_it_is_the_same(name: str, sample: Any) -> None:
    conv = LAYERS[name]().eval()
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    given = inputs(conv, sample(9, 30, dtype=torch.float32))
    shapes = {"x": {0: nodes}, "edge_index": {1: edges}, "edge_attr": {0: edges}}
    if conv.edge_dim is None:
        del shapes["edge_attr"]
    program = torch.export.export(conv, given, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for nodes_now, edges_now in ((9, 30), (4, 7), (31, 200)):
        given = inputs(conv, sample(nodes_now, edges_now, dtype=torch.float32))
        assert torch.equal(loaded(*given), conv(*given))
