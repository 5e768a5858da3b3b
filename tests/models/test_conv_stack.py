"""The plain stack: its layers against PyG's, options, sampled parts, learned rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.models.convs import CONVS, make_conv
from graphattn.models.stack import ConvStack
from graphattn.testing import random_graph, require_or_skip

require_or_skip("pyg")

from torch_geometric import nn as pyg  # noqa: E402

Inputs = Callable[..., dict[str, Any]]
SMALL = {"in_channels": 5, "width": 8, "heads": 2, "layers": 2, "dropout": 0.0}


@pytest.mark.parametrize("residual", ["add", "linear", "none"])
def test_it_is_its_layers(residual: str) -> None:
    torch.manual_seed(0)
    model = ConvStack(3, **SMALL, conv="torch_geometric.nn:TransformerConv", residual=residual, norm="layer").double()
    graph = random_graph(1, "hub")
    x = torch.randn(graph.num_tokens, 5, dtype=torch.float64)
    h = model.embed.linear(x)
    for block in model.blocks:
        assert isinstance(block.step.conv, pyg.TransformerConv) and block.step.conv.heads == 2
        step = block.step.conv(h, graph.edge_index)
        if residual == "linear":
            step = step + block.skip(h)
        step = block.norm(step).relu()
        h = h + step if residual == "add" else step
    torch.testing.assert_close(model(x, graph.edge_index), model.head(h))


@pytest.mark.parametrize("conv", sorted(CONVS))
def test_every_named_layer_in_a_stack(conv: str, inputs: Inputs) -> None:
    edges = {"edge_channels": 4} if conv in ("gine", "res_gated", "transformer", "graph_transformer") else {}
    model = ConvStack(3, **SMALL, conv=conv, **edges).eval()
    graph = random_graph(1, "hub")
    batch = inputs(model, graph)
    out = model(**batch)
    assert out.shape == (graph.num_tokens, 3) and out.isfinite().all()
    torch.testing.assert_close(model(**{**batch, "edge_index": graph}), out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(**{**batch, "edge_index": graph.edge_index[:, :1].repeat(1, graph.num_edges)}), out)
    if edges:
        assert not torch.allclose(model(**{**batch, "edge_attr": batch["edge_attr"] + 1}), out)


def test_ours_equals_pyg_with_its_state() -> None:
    ours, theirs = (ConvStack(3, **SMALL, conv=conv) for conv in ("transformer", "torch_geometric.nn:TransformerConv"))
    ours.load_state_dict(theirs.state_dict())
    graph = random_graph(2, "hub")
    x = torch.randn(graph.num_tokens, 5)
    results = []
    for model in (ours, theirs):
        out = model(x, graph.edge_index)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_seeds_of_a_sampled_part_get_their_rows() -> None:
    """Two layers read two hops: the induced part around some nodes gives them what the whole graph does."""
    model = ConvStack(3, **SMALL, num_nodes=30, conv="transformer").eval()
    graph = random_graph(4, "sparse")
    n = graph.num_tokens
    model.nodes = nn.Embedding(n, 8)
    x = torch.randn(n, 5)
    whole = model(x, graph.edge_index)
    seeds = torch.tensor([3, 0])
    reach = torch.zeros(n, dtype=torch.bool).index_fill(0, seeds, True)
    for _ in range(2):
        source, target = graph.edge_index
        reach = reach.index_fill(0, source[reach[target]], True)
    n_id = torch.cat([seeds, reach.index_fill(0, seeds, False).nonzero().flatten()])
    part = graph.restrict(n_id)
    torch.testing.assert_close(model(x[n_id], part.edge_index, n_id=n_id)[:2], whole[seeds], rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match="a part of a graph needs n_id"):
        model(x[n_id[:-1]], part.edge_index)


def test_rows_for_links_and_learned_rows_alone() -> None:
    model = ConvStack(num_nodes=13, width=8, layers=1, conv="sage", norm="none", dropout=0.0)
    graph = random_graph(1, "batch")
    assert graph.num_tokens == 13
    rows = model(None, graph.edge_index)
    assert rows.shape == (13, 8)
    rows.sum().backward()
    assert model.nodes.weight.grad.any(1).sum() > 1
    by_ids = ConvStack(in_vocab=13, width=8, layers=1, conv="sage", norm="none", dropout=0.0)
    by_ids.load_state_dict(
        {key.replace("nodes.", "embed.tables.0."): value for key, value in model.state_dict().items()}
    )
    assert torch.equal(by_ids(torch.arange(13), graph.edge_index), rows)


def test_layer_by_layer_it_is_the_same(inputs: Inputs) -> None:
    """As inference on a graph too large for the device goes through it."""
    model = ConvStack(3, **SMALL, edge_channels=4).eval()
    graph = random_graph(1, "hub")
    batch = inputs(model, graph)
    h, edge = model.encode_nodes(batch["x"]), model.encode_edges(batch["edge_attr"], graph.num_edges)
    for block in model.blocks:
        h, edge = block(h, graph, edge)
    assert torch.equal(model.head(h), model(**batch))


def test_compile(inputs: Inputs) -> None:
    torch._dynamo.reset()
    model = ConvStack(3, **SMALL)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for seed in (0, 1):
        batch = inputs(model, random_graph(seed, "hub"))
        torch.testing.assert_close(compiled(**batch), model(**batch), rtol=1e-4, atol=1e-5)


def test_gin_gets_a_network_and_gat_its_heads() -> None:
    gin = make_conv("torch_geometric.nn:GINConv", 4, 6)
    assert [layer.out_features for layer in gin.nn if isinstance(layer, nn.Linear)] == [6, 6]
    gat = make_conv("torch_geometric.nn:GATConv", 4, 6, heads=3, edge_dim=2, dropout=0.1, options={"residual": True})
    assert (gat.out_channels, gat.heads, gat.edge_dim, gat.dropout) == (2, 3, 2, 0.1) and gat.residual


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give in_channels, in_vocab or num_nodes"),
        ({"in_channels": 3, "in_vocab": 3}, "give at most one of in_vocab and in_channels"),
        ({"in_channels": 3, "edge_vocab": 3, "edge_channels": 3}, "give at most one of edge_vocab and edge_channels"),
        ({"in_channels": 3, "residual": "gated"}, "residual must be one of .*got 'gated'"),
        ({"in_channels": 3, "heads": 3}, "out_channels must be a multiple of heads, got 256 and 3"),
        ({"in_channels": 3, "conv": "gcnn"}, "conv must be one of .*got 'gcnn'"),
        ({"in_channels": 3, "conv_options": {"hops": 2}}, "layer 'transformer' cannot be made with"),
    ],
    ids=str,
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        ConvStack(3, **options)


def test_missing_inputs() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0], [1]]), 2)
    with pytest.raises(ArgumentError, match="x is needed"):
        ConvStack(3, in_channels=2)(None, graph.edge_index)
    with pytest.raises(ArgumentError, match="edge_attr is needed"):
        ConvStack(3, in_channels=2, edge_channels=1)(torch.zeros(2, 2), graph.edge_index)
