from __future__ import annotations

import networkx as nx
import pytest
import torch

from graphattn.encoding import random_walk, random_walk_pe
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph


def by_definition(graph: TokenGraph, steps: int) -> torch.Tensor:
    size = graph.num_targets
    walk = torch.zeros(size, size, dtype=torch.float64)
    source, target = graph.edge_index
    walk.index_put_((target, source), torch.ones(graph.num_edges, dtype=torch.float64), accumulate=True)
    walk = walk / walk.sum(0).clamp(min=1)
    powers = [torch.linalg.matrix_power(walk, t).diagonal() for t in range(1, steps + 1)]
    return torch.stack(powers, 1)


GRAPHS = {
    "undirected": nx.gnp_random_graph(30, 0.15, seed=0),
    "directed": nx.gnp_random_graph(30, 0.15, seed=1, directed=True),
    "loops": nx.Graph([(0, 0), (0, 1), (1, 2), (2, 2)]),
    "isolated": nx.empty_graph(3),
}


@pytest.mark.parametrize("way", ["dense", "sparse"])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_equals_the_diagonals_of_the_powers(graph_of, monkeypatch, way, name, steps):
    if way == "sparse":  # in chunks of two rows
        monkeypatch.setattr(random_walk, "_DENSE_LIMIT", 0)
        monkeypatch.setattr(random_walk, "_CHUNK_NUMBERS", 2 * len(GRAPHS[name]))
    graph = graph_of(GRAPHS[name])
    pe = random_walk_pe(graph, steps, dtype=torch.float64)
    torch.testing.assert_close(pe, by_definition(graph, steps), atol=1e-13, rtol=0)


@pytest.mark.requires("pyg")
@pytest.mark.parametrize("name", GRAPHS)
def test_equals_pyg(graph_of, name):
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddRandomWalkPE

    graph = graph_of(GRAPHS[name])
    expected = AddRandomWalkPE(7)(Data(edge_index=graph.edge_index, num_nodes=graph.num_targets))
    torch.testing.assert_close(random_walk_pe(graph, 7), expected.random_walk_pe, atol=1e-6, rtol=1e-5)


def test_known_values(graph_of):
    assert random_walk_pe(graph_of(nx.path_graph(2)), 4).tolist() == [[0, 1, 0, 1]] * 2
    complete = random_walk_pe(graph_of(nx.complete_graph(4)), 3)
    torch.testing.assert_close(complete, torch.tensor([[0, 1 / 3, 2 / 9]]).expand(4, 3))
    # Two of the three edges out of token 0 are one edge twice.
    edges = torch.tensor([[0, 0, 0, 1, 2], [1, 1, 2, 0, 0]])
    walk = random_walk_pe(TokenGraph.from_edge_index(edges, 3), 2)
    torch.testing.assert_close(walk[:, 1], torch.tensor([1, 2 / 3, 1 / 3]))


def test_tokens_without_edges_are_zero():
    graph = TokenGraph.from_edge_index(torch.tensor([[0], [1]]), 3)
    assert (random_walk_pe(graph, 4) == 0).all()
    assert random_walk_pe(TokenGraph.from_edge_index(torch.zeros(2, 0).long(), 0), 4).shape == (0, 4)


def test_batch_equals_members(graph_of, batch_of):
    members = [graph_of(graph) for graph in GRAPHS.values()]
    together = random_walk_pe(batch_of(members), 5)
    assert torch.equal(together, torch.cat([random_walk_pe(member, 5) for member in members]))


def test_permutation_equivariance(graph_of):
    graph, order = graph_of(GRAPHS["directed"]), torch.randperm(30)
    renumbered = TokenGraph.from_edge_index(order[graph.edge_index], 30)
    torch.testing.assert_close(random_walk_pe(renumbered, 6)[order], random_walk_pe(graph, 6))


def test_bad_input(graph_of):
    with pytest.raises(ArgumentError, match="steps must be at least 1, got 0"):
        random_walk_pe(graph_of(nx.path_graph(3)), 0)
