"""GATv2 as a score: equal to PyTorch Geometric's layer, with gradients."""

from __future__ import annotations

import pytest
import torch

from graphattn import TokenGraph, attend
from graphattn.errors import ArgumentError
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


def test_a_vector_that_somebody_else_holds() -> None:
    held = torch.randn(1, 2, 3, dtype=torch.double, requires_grad=True)
    score, other = GATv2Score(2, 3, att=held[0]), GATv2Score(2, 3).double()
    assert not list(score.parameters())
    other.att.data.copy_(held[0])
    graph = TokenGraph.from_edge_index(torch.randint(0, 6, (2, 20)), 6)
    q, k, v = torch.randn(3, 6, 2, 3, dtype=torch.double)
    out, expected = (attend(graph, q, k, v, score=each) for each in (score, other))
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out.square().sum(), held)
    torch.testing.assert_close(grad[0], *torch.autograd.grad(expected.square().sum(), other.att))
    with pytest.raises(ArgumentError, match=r"att must have shape \[2, 3\], got \[1, 2, 3\]"):
        GATv2Score(2, 3, att=held)
