"""The DGL layers on token graphs, where there is no DGL: against their formulas, dense and in float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn import TokenGraph
from graphattn.bridge.dgl import BiasedMHA, DotGatConv, GATConv, GATv2Conv, GraphormerLayer
from graphattn.errors import ArgumentError
from graphattn.testing import GRAPH_KINDS, random_graph

H, D = 2, 3


def dense_softmax(graph: TokenGraph, scores: Tensor) -> Tensor:
    """``[T, S, H]`` weights from scores of all pairs; duplicates count as often as they are there, empty rows are 0."""
    counts = torch.zeros(graph.num_targets, graph.num_sources, 1, dtype=scores.dtype)
    source, target = graph.edge_index
    counts.index_put_((target, source), torch.ones(1, dtype=scores.dtype), accumulate=True)
    weights = counts * scores.exp()
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
def test_formulas(kind: str, bipartite: bool) -> None:
    graph = random_graph(6, kind, bipartite=bipartite)
    x_s, x_t = (torch.randn(n, 5, dtype=torch.float64) for n in (graph.num_sources, graph.num_targets))

    gat = GATConv(5, D, H, allow_zero_in_degree=True, negative_slope=0.3).double()
    source, target = (gat.fc(x).unflatten(-1, (H, D)) for x in (x_s, x_t))
    scores = F.leaky_relu((target * gat.attn_r).sum(-1)[:, None] + (source * gat.attn_l).sum(-1)[None], 0.3)
    expected = torch.einsum("tsh,shd->thd", dense_softmax(graph, scores), source) + gat.bias.view(H, D)
    torch.testing.assert_close(gat(graph, (x_s, x_t)), expected, rtol=1e-10, atol=1e-12)

    gatv2 = GATv2Conv((5, 5), D, H, allow_zero_in_degree=True).double()
    source, target = gatv2.fc_src(x_s).unflatten(-1, (H, D)), gatv2.fc_dst(x_t).unflatten(-1, (H, D))
    scores = (F.leaky_relu(target[:, None] + source[None], 0.2) * gatv2.attn).sum(-1)
    expected = torch.einsum("tsh,shd->thd", dense_softmax(graph, scores), source)
    torch.testing.assert_close(gatv2(graph, (x_s, x_t)), expected, rtol=1e-10, atol=1e-12)

    dot = DotGatConv((5, 5), D, H, allow_zero_in_degree=True).double()
    source, target = dot.fc_src(x_s).unflatten(-1, (H, D)), dot.fc_dst(x_t).unflatten(-1, (H, D))
    scores = torch.einsum("thd,shd->tsh", target, source) / D**0.5
    expected = torch.einsum("tsh,shd->thd", dense_softmax(graph, scores), source)
    torch.testing.assert_close(dot(graph, (x_s, x_t)), expected, rtol=1e-10, atol=1e-12)


def test_names_of_parameters() -> None:
    """As in DGL 1.1.3, from its source."""
    for layer, names in (
        (GATConv(4, D, H), ["attn_l", "attn_r", "bias", "fc.weight"]),
        (GATConv((4, 5), D, H, bias=False), ["attn_l", "attn_r", "fc_src.weight", "fc_dst.weight"]),
        (GATConv(4, D, H, residual=True), ["attn_l", "attn_r", "fc.weight", "res_fc.weight", "res_fc.bias"]),
        (GATv2Conv(4, D, H, bias=False), ["attn", "fc_src.weight", "fc_dst.weight"]),
        (DotGatConv(4, D, H), ["fc.weight"]),
        (BiasedMHA(4, 2, bias=False), [f"{name}_proj.weight" for name in ("q", "k", "v", "out")]),
    ):
        assert list(layer.state_dict()) == names
    names = {name.partition(".")[0] for name in GraphormerLayer(4, 8, 2).state_dict()}
    assert names == {"attn", "ffn", "attn_layer_norm", "ffn_layer_norm"}


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, DotGatConv])
def test_compiles_in_one_piece(kind: type[torch.nn.Module]) -> None:
    graph, x = random_graph(1, "dense"), torch.randn(random_graph(1, "dense").num_tokens, 5)
    graph.prepare()
    layer = kind(5, D, H, allow_zero_in_degree=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(graph, x), layer(graph, x))


def test_zero_in_degree_is_our_error() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0], [1]]))
    with pytest.raises(ArgumentError, match="1 of 2 have none"):
        GATConv(5, D, H)(graph, torch.randn(2, 5))


def test_dgl_is_not_needed() -> None:
    code = """
import sys, torch
sys.modules["dgl"] = None
from graphattn import TokenGraph
from graphattn.bridge.dgl import GATConv
graph = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]))
print(GATConv(5, 3, 2)(graph, torch.randn(2, 5)).shape, "torch_geometric" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torch.Size([2,", "2,", "3])", "False"]
