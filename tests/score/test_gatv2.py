"""GATv2 as a score: equal to PyTorch Geometric's layer, with gradients."""

from __future__ import annotations

import torch

from graphattn import TokenGraph, attend
from graphattn.score import GATv2Score
from graphattn.testing import require_or_skip


def test_equals_pyg_gatv2conv() -> None:
    conv = require_or_skip("pyg").nn.GATv2Conv(5, 3, heads=2, add_self_loops=False, bias=False, edge_dim=4).double()
    x = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    edge_attr = torch.randn(20, 4, dtype=torch.double)
    edge_index = torch.cat([torch.randint(0, 6, (2, 14)), torch.arange(6).repeat(2, 1)], dim=1)
    score = GATv2Score(2, 3).double()
    score.att.data.copy_(conv.att[0])

    source, target = conv.lin_l(x).view(6, 2, 3), conv.lin_r(x).view(6, 2, 3)
    graph = TokenGraph.from_edge_index(edge_index, 6)
    out = attend(graph, target, source, source, score=score, edge_gate=conv.lin_edge(edge_attr).view(20, 2, 3))

    expected = conv(x, edge_index, edge_attr)
    torch.testing.assert_close(out.flatten(1), expected)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((out.flatten(1) * weight).sum(), [x, score.att]),
        torch.autograd.grad((expected * weight).sum(), [x, conv.att]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs.view_as(ours))
