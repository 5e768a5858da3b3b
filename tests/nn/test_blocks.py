"""The block, its norms, the feed-forward network and the readout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphattn.errors import ArgumentError
from graphattn.mechanisms import GraphTransformerAttention
from graphattn.nn import Block, FeedForward, Readout, make_norm
from graphattn.nn.norm import real_rows
from graphattn.testing import random_graph


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width", "edges", "count"), [(80, False, 51_840), (64, True, 58_368)], ids=["no-edges-80", "edges-64"]
)
def test_parameters_of_a_published_layer(width: int, edges: bool, count: int) -> None:
    attention = GraphTransformerAttention(width, 8, width if edges else None)
    assert parameters(Block(attention, width, edges=edges)) == count


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("edges", [True, False], ids=["edges", "no-edges"])
def test_the_block_is_its_equations(residual: bool, norm: str, edges: bool) -> None:
    """Attention, residual, norm, feed-forward, residual, norm; a path of the same form for edge rows."""
    width, graph = 8, random_graph(1, "hub")
    attention = GraphTransformerAttention(width, 2, width if edges else None)
    block = Block(attention, width, edges=edges, norm=norm, residual=residual)
    x = torch.randn(graph.num_tokens, width)
    edge = torch.randn(graph.num_edges, width) if edges else None
    block.eval()  # batch norm: the same running statistics each time

    def path(rows: torch.Tensor, step: torch.Tensor, part: nn.Module) -> torch.Tensor:
        rows = part.norm1(rows + step if residual else step)
        inner = part.feed_forward.outer(part.feed_forward.inner(rows).relu())
        return part.norm2(rows + inner if residual else inner)

    step, edge_step = attention(x, graph, edge)
    out, edge_out = block(x, graph, edge)
    torch.testing.assert_close(out, path(x, step, block.tokens))
    if edges:
        torch.testing.assert_close(edge_out, path(edge, edge_step, block.edges))
    else:
        assert edge_out is None


def test_batch_norm_statistics_are_those_of_real_rows() -> None:
    """Ragged batches have no padding, so the mean of what comes out of the norm is that of all tokens."""
    graph = random_graph(1, "batch")
    block = Block(GraphTransformerAttention(8, 2), 8)
    out, _ = block(torch.randn(graph.num_tokens, 8), graph)
    torch.testing.assert_close(out.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(8), atol=1e-3, rtol=0)


def test_dropout_acts_in_training_only() -> None:
    layer = FeedForward(8, dropout=0.5)
    x = torch.randn(3, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), layer.outer(layer.inner(x).relu()))
    assert layer.inner.out_features == 16


def test_norms() -> None:
    assert isinstance(make_norm("batch", 4), nn.BatchNorm1d)
    assert isinstance(make_norm("layer", 4), nn.LayerNorm)
    assert isinstance(make_norm("none", 4), nn.Identity)
    with pytest.raises(ArgumentError, match="norm must be one of .*batch.*got 'instance'"):
        make_norm("instance", 4)


def test_batch_norm_of_one_row_says_what_to_do() -> None:
    norm = make_norm("batch", 3)
    with pytest.raises(ArgumentError, match="more than one row, got a mini-batch with one token .* drop_last: true"):
        norm(torch.randn(1, 3))
    assert norm.eval()(torch.randn(1, 3)).shape == (1, 3)


def test_batch_norm_over_real_rows_keeps_float64() -> None:
    norm, x = make_norm("batch", 3).double(), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for counts in ({}, {6: torch.tensor(6)}):
        with real_rows(counts):
            out = norm(x)
        results.append((out, *torch.autograd.grad(out.square().sum() + out[0].sum(), [x, *norm.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_readout_halves_the_width() -> None:
    readout = Readout(80, 6)
    sizes = [(layer.in_features, layer.out_features) for layer in [*readout.hidden, readout.out]]
    assert sizes == [(80, 40), (40, 20), (20, 6)]
    x = torch.randn(5, 80)
    h = x
    for layer in readout.hidden:
        h = torch.relu(layer(h))
    torch.testing.assert_close(readout(x), readout.out(h))
    with pytest.raises(ArgumentError, match="width must be 4 or more, to be halved 2 times, got 3"):
        Readout(3, 1)
