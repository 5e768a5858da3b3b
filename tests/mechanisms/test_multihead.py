"""Multi-head attention: PyTorch's own layer as the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn import patterns
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import MultiheadAttention
from graphattn.testing import eager_attention, random_graph

WIDTH, HEADS = 8, 2


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("graph", ["complete", "causal", "random"])
def test_equal_to_pytorch_with_its_state(graph: str, bias: bool) -> None:
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=True).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours = MultiheadAttention(WIDTH, HEADS, bias=bias).double()
    ours.load_state_dict(theirs.state_dict())
    makers = {
        "complete": lambda: patterns.complete(7),
        "causal": lambda: patterns.causal(7),
        # Every token reads itself: without a source, PyTorch's layer gives NaN and ours its bias.
        "random": lambda: random_graph(0, "sparse").coalesce().with_self_loops(),
    }
    tokens = makers[graph]()
    x = torch.randn(tokens.num_tokens, WIDTH, dtype=torch.float64, requires_grad=True)
    expected = theirs(*[x[None]] * 3, attn_mask=~tokens.to_dense(), need_weights=False)[0][0]
    out, edge = ours(x, tokens)
    assert edge is None
    torch.testing.assert_close(out, expected)
    slope = torch.randn_like(out)
    leaves = [[x, *layer.parameters()] for layer in (ours, theirs)]
    grads = [torch.autograd.grad(y, v, slope) for y, v in zip((out, expected), leaves, strict=True)]
    torch.testing.assert_close(*grads)


def test_edge_rows_add_to_the_score() -> None:
    graph = random_graph(1, "hub")
    layer = MultiheadAttention(WIDTH, HEADS, edge_width=3).double()
    x = torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64)
    edge = torch.randn(graph.num_edges, 3, dtype=torch.float64)

    def rows(name: int) -> Tensor:
        weight, bias = layer.in_proj_weight.chunk(3)[name], layer.in_proj_bias.chunk(3)[name]
        return (x @ weight.T + bias).view(-1, HEADS, WIDTH // HEADS)

    heads = eager_attention(graph, rows(0), rows(1), rows(2), edge_bias=edge @ layer.edge.weight.T)
    torch.testing.assert_close(layer(x, graph, edge)[0], layer.out_proj(heads.flatten(1)))


def test_attention_dropout_is_on_the_weights_and_keeps_their_mean() -> None:
    layer = MultiheadAttention(WIDTH, 1, attention_dropout=0.5)
    graph, x = patterns.complete(5), torch.randn(5, WIDTH)
    mean = torch.stack([layer(x, graph)[0] for _ in range(1000)]).mean(0)
    torch.testing.assert_close(mean, layer.eval()(x, graph)[0], atol=0.1, rtol=0)


def test_errors() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0], [1]]), 2)
    x = torch.zeros(2, WIDTH)
    with pytest.raises(ArgumentError, match="made with edge_width=3, so edge is needed; edge rows, got edge=None"):
        MultiheadAttention(WIDTH, HEADS, 3)(x, graph)
    with pytest.raises(ArgumentError, match="made without edge rows, got edge=\\[1, 3\\]"):
        MultiheadAttention(WIDTH, HEADS)(x, graph, torch.zeros(1, 3))
