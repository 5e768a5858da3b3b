"""Exphormer's graph: kinds of edges, hubs, batches."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, expander_edges, exphormer, hubs, window
from graphattn.testing import random_graph, require_or_skip

SIZES = (5, 1, 8, 2)


def ragged() -> TokenGraph:
    return TokenGraph.batch([window(size, 1).without_self_loops() for size in SIZES])


def test_one_graph_is_the_union_of_its_parts() -> None:
    graph = random_graph(3, "hub")
    n = graph.num_tokens
    found = exphormer(graph, degree=4, hubs=2, seed=7)
    assert found.node.tolist() == list(range(n)) and found.hub.tolist() == [[n, n + 1]]
    assert found.graph.target_ptr is None and found.graph.num_tokens == n + 2
    source, target = found.graph.edge_index
    given = found.edge_type == 0
    assert torch.equal(found.graph.edge_index[:, given], graph.edge_index)  # first, and in the caller's order
    assert given[: graph.num_edges].all() and not given[graph.num_edges :].any()
    assert torch.equal(found.graph.edge_index[:, found.edge_type == 1], expander_edges(graph, 4, 7))
    for k in range(2):
        into, out = found.edge_type == 2 + k, found.edge_type == 4 + k
        assert torch.equal(source[into], torch.arange(n)) and (target[into] == n + k).all()
        assert torch.equal(target[out], torch.arange(n)) and (source[out] == n + k).all()
    assert found.num_edge_types == 6 and found.edge_type.max() == 5

    # As sets it is the algebra's, but for the edges among hubs, which `hubs` has; its hubs stand first.
    order = torch.cat([torch.tensor([n, n + 1]), torch.arange(n)])
    pattern = hubs(n + 2, 2) - TokenGraph.from_edge_index(torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]), n + 2)
    both = torch.cat([graph.edge_index, expander_edges(graph, 4, 7)], dim=1) + 2
    expected = TokenGraph.from_edge_index(both, n + 2) | pattern
    assert torch.equal(found.graph.reorder(order).to_dense(), expected.to_dense())


def test_members_of_a_batch_equal_each_alone() -> None:
    batch = exphormer(ragged(), degree=4, hubs=2, seed=3)
    assert batch.graph.target_ptr.tolist() == [0, 7, 10, 20, 24]
    for member, (part, size) in enumerate(zip(batch.graph.unbatch(), SIZES, strict=True)):
        alone = exphormer(window(size, 1).without_self_loops(), degree=4, hubs=2, seed=3)
        assert torch.equal(part.to_dense(), alone.graph.to_dense())
        mine = batch.graph.target_batch[batch.graph.edge_index[1]] == member
        first = batch.graph.target_ptr[member]
        pairs = torch.cat([batch.graph.edge_index[:, mine] - first, batch.edge_type[mine][None]])
        assert torch.equal(pairs, torch.cat([alone.graph.edge_index, alone.edge_type[None]]))
        assert batch.hub[member].tolist() == [first + size, first + size + 1]
    assert not set(batch.node.tolist()) & set(batch.hub.flatten().tolist())


def test_rows_of_nodes_and_hubs() -> None:
    found = exphormer(ragged(), hubs=2)
    nodes, rows = torch.randn(16, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    tokens = found.join(nodes, rows)
    assert torch.equal(found.nodes(tokens), nodes)
    assert torch.equal(tokens[found.hub], rows.expand(4, 2, 3))
    slope = torch.randn_like(tokens)
    got = torch.autograd.grad(tokens, (nodes, rows), slope)
    torch.testing.assert_close(got, (slope[found.node], slope[found.hub].sum(0)))


def test_the_expander_is_one_and_follows_its_seed() -> None:
    graph = window(200, 0)
    edges = expander_edges(graph, 6, seed=1)
    assert torch.equal(edges, expander_edges(graph, 6, seed=1))
    assert not torch.equal(edges, expander_edges(graph, 6, seed=2))
    adjacency = TokenGraph.from_edge_index(edges, 200).to_dense().double()
    assert torch.equal(adjacency, adjacency.T) and not adjacency.diagonal().any()
    degree = adjacency.sum(1)
    assert degree.max() == 6 and degree.min() >= 4
    # The walk mixes: the second eigenvalue is near 2 sqrt(d - 1) / d, far from 1 (a ring of 200: 0.9995).
    walk = adjacency / (degree[:, None] * degree[None, :]).sqrt()
    assert torch.linalg.eigvalsh(walk)[-2] < 0.85


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_small_members(size: int) -> None:
    graph = window(size, 0)
    edges = expander_edges(graph, 4)
    assert edges.shape[1] == size * (size - 1)  # complete: no loops, nothing twice
    found = exphormer(graph, degree=4, hubs=1)
    assert found.graph.num_tokens == size + 1 and found.graph.num_edges == size + edges.shape[1] + 2 * size


def test_without_expander_or_hubs() -> None:
    graph = ragged()
    plain = exphormer(graph, degree=0, hubs=0)
    assert torch.equal(plain.graph.edge_index, graph.edge_index) and not plain.edge_type.any()
    assert torch.equal(plain.graph.target_ptr, graph.target_ptr)
    assert set(exphormer(graph, degree=4, hubs=0).edge_type.tolist()) == {0, 1}


def test_expander_made_before() -> None:
    graph = ragged()
    made = exphormer(graph, degree=4, hubs=1, seed=5)
    given = exphormer(graph, hubs=1, expander=expander_edges(graph, 4, 5))
    assert torch.equal(given.graph.edge_index, made.graph.edge_index) and torch.equal(given.edge_type, made.edge_type)


def test_as_a_transform_it_equals_the_batch() -> None:
    require_or_skip("pyg")
    from torch_geometric.data import Batch, Data

    from graphattn.encoding import AddExpander

    transform = AddExpander(4, seed=5)
    graphs = [window(size, 1) for size in SIZES]
    data = [transform(Data(edge_index=graph.edge_index, num_nodes=graph.num_tokens)) for graph in graphs]
    batch = Batch.from_data_list(data)
    expected = expander_edges(TokenGraph.batch(graphs), 4, 5)
    assert torch.equal(batch.expander_index, expected)
    assert repr(transform) == "AddExpander(degree=4, attr_name='expander_index', seed=5)"
    with pytest.raises(ArgumentError, match="attr_name must hold 'index'"):
        AddExpander(4, "expander")


def test_compile_with_an_expander_made_before() -> None:
    torch._dynamo.reset()

    def build(graph: TokenGraph, expander: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found = exphormer(graph, hubs=1, expander=expander)
        rows = found.join(x, x[:1])
        return found.nodes(rows.index_add(0, found.graph.edge_index[1], rows[found.graph.edge_index[0]]))

    compiled = torch.compile(build, fullgraph=True, dynamic=True, backend="eager")
    for graph in (ragged(), TokenGraph.batch([random_graph(0), random_graph(1)])):
        arguments = graph, expander_edges(graph, 4), torch.randn(graph.num_tokens, 2)
        torch.testing.assert_close(compiled(*arguments), build(*arguments))


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="square graph without leading"):
        exphormer(random_graph(0, bipartite=True))
    with pytest.raises(ArgumentError, match="square graph without leading"):
        exphormer(TokenGraph.per_head([window(3, 1), window(3, 1)]))
    with pytest.raises(ArgumentError, match="hubs must be 0 or more, got -1"):
        exphormer(window(3, 1), hubs=-1)
    with pytest.raises(ArgumentError, match="degree must be 2 or more"):
        exphormer(window(3, 1), degree=1)
    with pytest.raises(ArgumentTypeError, match="expander must be an edge_index"):
        exphormer(window(3, 1), expander=torch.zeros(3))
