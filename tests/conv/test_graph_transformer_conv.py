"""GraphTransformerConv is the attention of the graph transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.testing import require_or_skip

require_or_skip("pyg")

from graphattn import TokenGraph  # noqa: E402
from graphattn.conv import GraphTransformerConv, TransformerConv  # noqa: E402
from graphattn.mechanisms import GraphTransformerAttention  # noqa: E402


def with_weights_of(mechanism: GraphTransformerAttention, bias: bool) -> GraphTransformerConv:
    width, heads = mechanism.width, mechanism.heads
    edge_dim = None if mechanism.edge is None else width
    conv = GraphTransformerConv(width, width // heads, heads, edge_dim=edge_dim, clamp=mechanism.clamp, bias=bias)
    for name in ("query", "key", "value", "edge"):
        linear = getattr(mechanism, name)
        if linear is not None:
            getattr(conv, f"lin_{name}").load_state_dict(linear.state_dict())
    return conv.double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("clamp", [None, 5.0, 0.1])
def test_equals_the_mechanism_before_its_output_projection(
    sample: Any, clamp: float | None, edges: bool, bias: bool
) -> None:
    s = sample(width=8, edge_width=8)
    mechanism = GraphTransformerAttention(8, 2, 8 if edges else None, clamp=clamp, bias=bias).double()
    conv = with_weights_of(mechanism, bias)
    x, edge_attr = s.x.requires_grad_(), s.edge_attr.requires_grad_()
    inputs = [x, edge_attr] if edges else [x]

    graph = TokenGraph.from_edge_index(s.edge_index, s.x.shape[0])
    expected, _ = mechanism(x, graph, edge_attr if edges else None)
    out = mechanism.out(conv(x, s.edge_index, edge_attr if edges else None))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grads, expected_grads = (torch.autograd.grad(y.sin().sum(), inputs) for y in (out, expected))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


def by_hand(conv: GraphTransformerConv, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> Tensor:
    source, target = edge_index
    heads, channels = conv.heads, conv.out_channels
    q, k, v = (f(x).view(-1, heads, channels) for f in (conv.lin_query, conv.lin_key, conv.lin_value))
    product = q[target] * k[source] / channels**0.5
    if edge_attr is not None:
        product = product * conv.lin_edge(edge_attr).view(-1, heads, channels)
    score = product.sum(-1).clamp(-conv.clamp, conv.clamp)
    out = torch.zeros_like(v)
    for t in range(x.shape[0]):
        here = target == t
        out[t] = (score[here].softmax(0).unsqueeze(-1) * v[source[here]]).sum(0)
    return out


@pytest.mark.parametrize("edges", [False, True])
def test_equals_the_formula(sample: Any, edges: bool) -> None:
    s = sample()
    edge_attr = s.edge_attr if edges else None
    conv = GraphTransformerConv(6, 4, heads=2, edge_dim=3 if edges else None, clamp=0.3).double()
    expected = by_hand(conv, s.x, s.edge_index, edge_attr)
    torch.testing.assert_close(conv(s.x, s.edge_index, edge_attr), expected.flatten(1))
    conv.concat = False
    torch.testing.assert_close(conv(s.x, s.edge_index, edge_attr), expected.mean(1))


def test_clamp_bounds_every_weight(sample: Any) -> None:
    s = sample(4, 40)
    conv = GraphTransformerConv(6, 4, heads=2, clamp=1.0).double()
    _, (_, alpha) = conv(100 * s.x, s.edge_index, return_attention_weights=True)
    degree = 10
    low = torch.e**-2 / (torch.e**-2 + degree - 1)
    high = 1 / (1 + (degree - 1) * torch.e**-2)
    assert alpha.min() >= low - 1e-12 and alpha.max() <= high + 1e-12


def test_a_gate_of_ones_is_no_gate(sample: Any) -> None:
    s = sample()
    plain = GraphTransformerConv(6, 4, heads=2, clamp=None).double()
    gated = GraphTransformerConv(6, 4, heads=2, clamp=None, edge_dim=1).double()
    gated.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.ones_(gated.lin_edge.weight)
    out = gated(s.x, s.edge_index, torch.ones(s.edge_index.shape[1], dtype=torch.float64))
    torch.testing.assert_close(out, plain(s.x, s.edge_index))


def test_without_clamp_and_edges_it_is_transformer_conv(sample: Any) -> None:
    s = sample()
    ours = GraphTransformerConv(6, 4, heads=2, clamp=None, bias=True, root_weight=True).double()
    other = TransformerConv(6, 4, heads=2).double()
    other.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(s.x, s.edge_index), other(s.x, s.edge_index))


def test_a_node_without_in_edges_gets_zero() -> None:
    conv = GraphTransformerConv(6, 4, heads=2)
    x = torch.randn(3, 6, requires_grad=True)
    out = conv(x, torch.tensor([[0, 1], [1, 0]]))
    assert torch.equal(out[2], torch.zeros(8))
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_published_defaults() -> None:
    conv = GraphTransformerConv(6, 4, heads=2, edge_dim=3)
    assert conv.clamp == 5.0 and conv.dropout == 0.0
    assert sorted(conv.state_dict()) == [f"lin_{name}.weight" for name in ("edge", "key", "query", "value")]
