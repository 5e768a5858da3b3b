"""The additive scores in the kernels, and GAT as published."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from graphattn.attention import attend
from graphattn.backends.steps import why_unfused
from graphattn.graph import TokenGraph
from graphattn.normalize import Softmax
from graphattn.propagate import OneHop
from graphattn.score import GATScore, GATv2Score, Score, resolve_score
from graphattn.testing import random_graph, require_or_skip

H, D = 2, 4


class PlainGAT(GATScore):
    fused = None


class PlainGATv2(GATv2Score):
    fused = None


def test_equals_pyg_gatconv() -> None:
    GATConv = require_or_skip("pyg").nn.GATConv
    conv = GATConv(5, D, heads=H, edge_dim=3, add_self_loops=False).double()
    graph = random_graph(3, "hub")
    x = torch.randn(graph.num_tokens, 5, dtype=torch.float64)
    edge = torch.randn(graph.num_edges, 3, dtype=torch.float64)
    values = conv.lin(x).view(-1, H, D)
    q, k = ((values * a).sum(-1, keepdim=True) for a in (conv.att_dst, conv.att_src))
    gate = (conv.lin_edge(edge).view(-1, H, D) * conv.att_edge).sum(-1, keepdim=True)
    out = attend(graph, q, k, values, score="gat", edge_gate=gate, backend="gather")
    torch.testing.assert_close(out.flatten(1), conv(x, graph.edge_index, edge) - conv.bias)


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["gat", "gatv2"])
def test_fused_is_edge_by_edge(kind: str, gated: bool, lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    graph = random_graph(2, "hub", bipartite=True)
    fused: Score = GATScore(0.1) if kind == "gat" else GATv2Score(H, D, 0.1).double()
    plain: Score = PlainGAT(0.1) if kind == "gat" else PlainGATv2(H, D, 0.1).double()
    plain.load_state_dict(fused.state_dict())
    assert why_unfused(graph, fused, Softmax(), OneHop(), False) is None
    assert why_unfused(graph, plain, Softmax(), OneHop(), False) is not None
    tokens = graph.num_targets, graph.num_sources, graph.num_sources
    leaves = [torch.randn(*lead, n, H, D, dtype=torch.float64) for n in tokens]
    if gated:
        leaves.append(torch.randn(graph.num_edges, H, D, dtype=torch.float64))
    leaves = [x.requires_grad_() for x in leaves]
    results = []
    for score in (fused, plain):
        q, k, v, *gate = leaves
        options = {"edge_gate": gate[0]} if gated else {}
        out = attend(graph, q, k, v, score=score, clamp=1.5, scale=0.8, backend="gather", **options)
        gradients = torch.autograd.grad(out.square().sum(), [*leaves, *score.parameters()])
        results.append((out, *gradients))
    torch.testing.assert_close(*results)


def test_a_graph_for_each_head() -> None:
    """GAT has no parameters for each head, so that its copies fuse; GATv2 has, and takes the edges one by one."""
    masks = torch.rand(H, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    graph = TokenGraph.per_head([TokenGraph.from_adj_t(mask) for mask in masks])
    x = torch.randn(6, H, D, dtype=torch.float64)
    assert why_unfused(graph, GATScore(), Softmax(), OneHop(), False) is None
    score = GATv2Score(H, D).double()
    reason = why_unfused(graph, score, Softmax(), OneHop(), False)
    assert reason is not None and "parameters for each head" in reason
    for each in (GATScore(), score):
        a = torch.ones(H, D, dtype=torch.float64) if isinstance(each, GATScore) else each.att
        logits = (F.leaky_relu(x[:, None] + x[None], 0.2) * a).sum(-1).permute(2, 0, 1)
        weights = logits.masked_fill(~masks, -torch.inf).softmax(-1).nan_to_num()
        expected = torch.einsum("hts,shd->thd", weights, x)
        torch.testing.assert_close(attend(graph, x, x, x, score=each, backend="gather"), expected)


def test_by_name() -> None:
    assert isinstance(resolve_score("gat"), GATScore) and resolve_score("gat").additive() == (None, 0.2)
    assert resolve_score("dot").additive() == (None, None)
    score = GATv2Score(H, D, 0.3)
    assert score.additive()[0] is score.att and score.additive()[1] == 0.3
