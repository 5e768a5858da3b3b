"""The GPS block, GINE and the virtual node."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphattn import patterns
from graphattn.errors import ArgumentError
from graphattn.mechanisms import GatedGCN, MultiheadAttention
from graphattn.nn import GINE, GPSBlock, VirtualNode, unpool
from graphattn.testing import random_graph, require_or_skip

WIDTH = 8


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_the_gated_block_is_its_equations(norm: str) -> None:
    graph, whole = random_graph(1, "hub"), patterns.complete(random_graph(1, "hub").num_tokens)
    local, attention = GatedGCN(WIDTH, 2, WIDTH), MultiheadAttention(WIDTH, 2)
    block = GPSBlock(WIDTH, local, attention, norm=norm, gated=True, edge_output=True).eval()
    x, edge = torch.randn(graph.num_tokens, WIDTH), torch.randn(graph.num_edges, WIDTH)
    out, new_edge = block(x, graph, edge, whole)

    step, edge_step = local(x, graph, edge)
    total = block.norm_local(x + block.gate[0](step).relu()) + block.norm_attention(x + attention(x, whole)[0])
    torch.testing.assert_close(out, block.norm_out(total + block.feed_forward(total)))
    torch.testing.assert_close(new_edge, edge + block.edge_gate[0](edge_step).relu())


def test_one_part_alone_and_none() -> None:
    graph = random_graph(1, "hub")
    x = torch.randn(graph.num_tokens, WIDTH)
    local, attention = GINE(WIDTH, edges=False), MultiheadAttention(WIDTH, 2)
    for parts in ((local, None), (None, attention)):
        block = GPSBlock(WIDTH, *parts, norm="none")
        total = x + (parts[0] or parts[1])(x, graph)[0]
        out, edge = block(x, graph)
        torch.testing.assert_close(out, total + block.feed_forward(total))
        assert edge is None
    with pytest.raises(ArgumentError, match="must not both be None"):
        GPSBlock(WIDTH, None, None)


@pytest.mark.parametrize("kind", ["hub", "empty_rows", "duplicates", "no_edges"])
def test_gine_equals_pyg(kind: str) -> None:
    require_or_skip("pyg")
    from torch_geometric.nn import GINEConv

    graph = random_graph(0, kind)
    ours = GINE(WIDTH).double()
    theirs = GINEConv(ours.mlp).double()
    x = torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64, requires_grad=True)
    edge = torch.randn(graph.num_edges, WIDTH, dtype=torch.float64, requires_grad=True)
    outs = ours(x, graph, edge)[0], theirs(x, graph.edge_index, edge)
    torch.testing.assert_close(*outs)
    slope = torch.randn_like(outs[0])
    leaves = [x, edge, *ours.mlp.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(out, leaves, slope, materialize_grads=True) for out in outs))
    with pytest.raises(ArgumentError, match="edge must be"):
        ours(x, graph)


def test_virtual_node_by_hand() -> None:
    batch = torch.tensor([0, 0, 1, 1, 1])
    node = VirtualNode(WIDTH).double()
    x, row = torch.randn(5, WIDTH, dtype=torch.float64), torch.randn(2, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(node.read(x, row, batch), x + row[batch])
    sums = torch.stack([x[:2].sum(0), x[2:].sum(0)])
    torch.testing.assert_close(node(row, x, batch), row + node.mlp(row + sums))
    torch.testing.assert_close(node(row[:1], x, None), row[:1] + node.mlp(row[:1] + x.sum(0)))


def test_unpool_is_indexing_with_its_gradient() -> None:
    batch = torch.tensor([1, 1, 3, 3, 3])
    rows = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(5, 4, dtype=torch.float64)
    outs = unpool(rows, batch, 5), rows[batch]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*(torch.autograd.grad(out, rows, slope) for out in outs))
    assert torch.equal(unpool(rows[:1], None, 3), rows[:1].expand(3, 4))
    with pytest.raises(ArgumentError, match="rows must be \\[1, C\\] where batch is None, got \\[5, 4\\]"):
        unpool(rows, None, 3)


def test_dropout_is_where_the_paper_has_it() -> None:
    """On both outputs and in the feed-forward network; at 1, only the residuals are left."""
    graph = random_graph(1, "hub")
    block = GPSBlock(WIDTH, GINE(WIDTH, edges=False), MultiheadAttention(WIDTH, 2), norm="none")
    block.dropout = nn.Dropout(1.0)
    x = torch.randn(graph.num_tokens, WIDTH)
    torch.testing.assert_close(block(x, graph)[0], 2 * x)
