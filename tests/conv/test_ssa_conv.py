"""SSAConv around PyG's layers and ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphattn import TokenGraph, patterns
from graphattn.errors import ArgumentError
from graphattn.mechanisms import sampling
from graphattn.nn import self_ensemble
from graphattn.testing import random_graph, require_or_skip

require_or_skip("pyg")

import torch_geometric.nn as pyg  # noqa: E402

from graphattn.conv import InfSAConv, SSAConv, TransformerConv  # noqa: E402

FLOWS = ("source_to_target", "target_to_source")
LAYERS = pytest.mark.parametrize("layer", [TransformerConv, pyg.TransformerConv])


def edges(count: int = 300, nodes: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randint(nodes, (2, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("layer", "as_graph"), [(TransformerConv, False), (TransformerConv, True), (pyg.TransformerConv, False)]
)
def test_training_reads_drawn_nodes_and_evaluation_all(layer: type, as_graph: bool) -> None:
    torch.manual_seed(0)
    conv = SSAConv(layer(6, 4, heads=2, edge_dim=3).double(), 0.25)
    x, index, attr = torch.randn(40, 6).double(), edges(), torch.randn(300, 3).double()
    given = TokenGraph.from_edge_index(index, 40) if as_graph else index
    assert torch.equal(conv.eval()(x, given, attr), conv.conv(x, index, attr))
    conv.train()
    conv.generator = torch.Generator().manual_seed(1)
    out, (kept, alpha) = conv(x, given, attr, return_attention_weights=True)
    conv.generator.manual_seed(1)
    drawn = conv.draw(TokenGraph.from_edge_index(index, 40), edges=True)
    assert torch.equal(kept, index[:, drawn.edge]) and alpha.shape == (kept.shape[1], 2)
    torch.testing.assert_close(out, conv.conv(x, kept, attr[drawn.edge]))
    readers = kept[0][kept[0] != kept[1]].unique()
    assert len(readers) <= 10  # a quarter of 40; self-loops stay
    missing = torch.isin(index[0], readers, invert=True) & (index[0] != index[1])
    assert not torch.isin(drawn.edge, missing.nonzero().flatten()).any()


def test_each_graph_of_a_batch_draws_its_own() -> None:
    conv = SSAConv(TransformerConv(6, 4), 0.25, minimum=2).train()
    graph = patterns.blocks(torch.tensor([0, 12, 40])).edge_index
    batch = torch.tensor([0] * 12 + [1] * 28)
    _, (kept, _) = conv(torch.randn(40, 6), graph, batch=batch, return_attention_weights=True)
    others = kept[:, kept[0] != kept[1]][0].unique()
    assert (others < 12).sum() == 3 and (others >= 12).sum() == 7
    with pytest.raises(ArgumentError, match=r"batch must have an entry for each of 40 sources, got \[5\]"):
        conv(torch.randn(40, 6), graph, batch=batch[:5])
    with pytest.raises(ArgumentError, match="batch must ascend"):
        conv(torch.randn(40, 6), graph[:, :0], batch=batch.flip(0))


def test_each_graph_of_a_batch_draws_its_own_where_edges_are_a_graph_and_where_sources_are_no_targets() -> None:
    sizes, batch = torch.tensor([12, 28]), torch.tensor([0] * 12 + [1] * 28)
    index = patterns.blocks(torch.tensor([0, 12, 40])).edge_index
    conv = SSAConv(TransformerConv(6, 4), 0.25, minimum=2).train()
    x = torch.randn(40, 6)
    _, (kept, _) = conv(x, TokenGraph.from_edge_index(index, 40), batch=batch, return_attention_weights=True)
    others = kept[0][kept[0] != kept[1]].unique()
    assert [(others < 12).sum(), (others >= 12).sum()] == [3, 7]
    targets = torch.tensor([0, 0, 0, 1])
    index = (targets[:, None] == batch).nonzero().T.flip(0)  # all of its own graph
    _, (kept, _) = conv((x, x[:4]), index, batch=(batch, targets), return_attention_weights=True)
    assert torch.equal(torch.bincount(batch[kept[0].unique()]), sizes // 4)
    assert torch.equal(torch.bincount(kept[1]), torch.tensor([3, 3, 3, 7]))


@LAYERS
def test_rows_of_other_edges_are_refused(layer: type) -> None:
    conv = SSAConv(layer(6, 4, edge_dim=3), 0.25).train()
    with pytest.raises(ArgumentError, match=r"a row for each of 300 edges, got \[301, 3\]"):
        conv(torch.randn(40, 6), edges(), torch.randn(301, 3))


@LAYERS
@pytest.mark.parametrize("with_rows", [False, True])
def test_of_turned_edges_sources_are_drawn(layer: type, with_rows: bool) -> None:
    index, attr = edges(), torch.randn(300, 3) if with_rows else None
    options = {"edge_dim": 3 if with_rows else None}
    straight, turned = (SSAConv(layer((6, 5), 4, flow=flow, **options), 0.25, minimum=2) for flow in FLOWS)
    turned.load_state_dict(straight.state_dict())
    x = torch.randn(40, 6), torch.randn(50, 5)  # more targets than sources
    results = []
    for conv, given in ((straight, index), (turned, index.flip(0))):
        with sampling(conv, True, torch.Generator().manual_seed(0)):
            out, (kept, _) = conv(x, given, attr, return_attention_weights=True)
        results.append((out, kept))
    torch.testing.assert_close(results[1], (results[0][0], results[0][1].flip(0)))
    assert len(results[1][1][1].unique()) <= 10


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_values_of_a_sparse_matrix_stay_with_their_edges(layout: torch.layout) -> None:
    torch.manual_seed(0)
    graph = random_graph(0, "dense")
    values = torch.randn(graph.num_edges)
    matrix = graph.to_torch_sparse(values, layout)
    dense = matrix.to_dense()
    x = torch.randn(graph.num_tokens, 6)
    conv = SSAConv(TransformerConv(6, 4, edge_dim=1), 0.5, minimum=2).train()
    out, (kept, _) = conv(x, matrix, return_attention_weights=True)
    torch.testing.assert_close(out, conv.conv(x, kept, dense[kept[1], kept[0]]))
    assert kept.shape[1] < graph.num_edges
    with sampling(conv, True, torch.Generator().manual_seed(0)):  # a layer without edge features leaves them alone
        conv.conv = TransformerConv(6, 4)
        conv(x, matrix)
        conv.conv = pyg.SimpleConv("sum")
        out = conv(x, matrix)
        assert not torch.allclose(out, conv.conv(x, matrix))
    with sampling(conv, True, torch.Generator().manual_seed(0)):
        conv(x, matrix)
        drawn = conv.draw(graph, edges=True)
    read = torch.zeros_like(dense)
    read[graph.edge_index[1, drawn.edge], graph.edge_index[0, drawn.edge]] = values[drawn.edge]
    torch.testing.assert_close(out, read @ x)


@pytest.mark.parametrize("as_graph", [False, True])
def test_a_layer_that_asks_for_the_graph_of_each_node_is_told(as_graph: bool) -> None:
    sizes, batch = [12, 28], torch.tensor([0] * 12 + [1] * 28)
    graph = patterns.blocks(torch.tensor([0, 12, 40]))
    x = torch.randn(40, 6)
    conv = SSAConv(InfSAConv(6, 4, heads=2), 0.25, minimum=2)
    given = graph if as_graph else graph.edge_index
    told = {} if as_graph else {"batch": batch}
    own = [conv.conv(rows, patterns.complete(len(rows))) for rows in x.split(sizes)]
    torch.testing.assert_close(conv.eval()(x, given, **told), torch.cat(own))
    out, (kept, _) = conv.train()(x, given, return_attention_weights=True, **told)
    parts = [(kept[:, batch[kept[1]] == 0], 0), (kept[:, batch[kept[1]] == 1], 12)]
    own = [conv.conv(rows, part - first) for rows, (part, first) in zip(x.split(sizes), parts, strict=True)]
    torch.testing.assert_close(out, torch.cat(own))


def test_bipartite_graphs_phases_and_ensembles() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SSAConv(TransformerConv((6, 5), 4), 0.5, minimum=2)

        def forward(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return self.conv((x, y), index)

    torch.manual_seed(0)
    net = Net().eval()
    x, y = torch.randn(40, 6), torch.randn(9, 5)
    index = torch.stack([torch.randint(40, (200,)), torch.randint(9, (200,))])
    dense = net(x, y, index)
    with torch.no_grad(), self_ensemble(net, 64, seed=0, average="values"):
        mean = net(x, y, index)
    assert 0 < (mean - dense).abs().max() and (mean - dense).norm() < 0.3 * dense.norm()
    with sampling(net, True) as (found,):
        assert found is net.conv
        found.set_scheme(1.0)
        assert torch.equal(net(x, y, index), dense)
    net.conv.reset_parameters()
    assert not torch.equal(net(x, y, index), dense)
