from __future__ import annotations

import networkx as nx
import pytest
import torch

from graphattn.encoding import hop, hop_distance, hop_pairs
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

GRAPHS = {
    "undirected": nx.gnp_random_graph(25, 0.1, seed=0),
    "directed": nx.gnp_random_graph(25, 0.08, seed=1, directed=True),
    "path": nx.path_graph(9),
    "isolated": nx.empty_graph(3),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("limit", [1, 3, 50])
def test_equals_networkx(graph_of, name, limit):
    graph = GRAPHS[name]
    size = len(graph)
    expected = torch.full((size, size), limit + 1)
    for source, lengths in nx.all_pairs_shortest_path_length(graph, cutoff=limit):
        for target, length in lengths.items():
            expected[target, source] = length
    assert torch.equal(hop_distance(graph_of(graph), limit), expected)


def test_ways_follow_the_edges():
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3)  # 0 -> 1 -> 2
    assert hop_distance(graph, 5).tolist() == [[0, 6, 6], [1, 0, 6], [2, 1, 0]]


def test_duplicates_and_loops_change_nothing(graph_of):
    graph = graph_of(GRAPHS["path"])
    more = torch.cat([graph.edge_index, graph.edge_index, torch.tensor([[3], [3]])], 1)
    assert torch.equal(hop_distance(TokenGraph.from_edge_index(more, 9), 4), hop_distance(graph, 4))


@pytest.mark.parametrize("chunk", [1 << 22, 30])
def test_pairs_are_the_members_matrices(graph_of, batch_of, monkeypatch, chunk):
    monkeypatch.setattr(hop, "_CHUNK_NUMBERS", chunk)
    members = [graph_of(graph) for graph in GRAPHS.values()]
    pairs = hop_pairs(batch_of(members), 3)
    assert pairs.edge_index.shape[1] == sum(member.num_targets**2 for member in members)
    size = sum(member.num_targets for member in members)
    dense = torch.full((size, size), -1)
    dense[pairs.edge_index[1], pairs.edge_index[0]] = pairs.distance
    expected = torch.block_diag(*(hop_distance(member, 3) + 1 for member in members)) - 1
    assert torch.equal(dense, expected.long())
    key = pairs.edge_index[1] * size + pairs.edge_index[0]
    assert (key.diff() > 0).all()  # by target, then source


def test_reachable_pairs_only(graph_of, batch_of):
    graph = batch_of([graph_of(graph) for graph in GRAPHS.values()])
    every, near = hop_pairs(graph, 2), hop_pairs(graph, 2, reachable_only=True)
    keep = every.distance <= 2
    assert 0 < keep.sum() < len(keep)
    assert torch.equal(near.edge_index, every.edge_index[:, keep])
    assert torch.equal(near.distance, every.distance[keep])


def test_empty():
    graph = TokenGraph.from_edge_index(torch.zeros(2, 0).long(), 0)
    assert hop_distance(graph, 2).shape == (0, 0)
    assert hop_pairs(graph, 2).edge_index.shape == (2, 0)


def test_bad_input(graph_of, batch_of):
    graph = graph_of(GRAPHS["path"])
    with pytest.raises(ArgumentError, match="max_distance must be at least 1, got 0"):
        hop_distance(graph, 0)
    with pytest.raises(ArgumentError, match="got 2; use hop_pairs"):
        hop_distance(batch_of([graph, graph]), 2)
