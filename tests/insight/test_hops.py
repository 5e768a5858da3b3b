"""Profiles over distances on trees and graphs, against breadth-first search and by hand."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

from graphattn import TokenGraph
from graphattn.encoding import hop_distance
from graphattn.errors import ArgumentError
from graphattn.insight import (
    DistanceProfile,
    Edges,
    compare_received,
    distance_profile,
    jensen_shannon,
    local_and_global,
    topology_alignment,
)


def test_profile_on_a_graph_says_how_far_heads_read() -> None:
    graph = nx.petersen_graph()
    token_graph = TokenGraph.from_networkx(graph.to_directed())
    distance = hop_distance(token_graph, 4)
    one_hop = torch.zeros(10, 10)
    for a, b in graph.edges:
        one_hop[a, b] = one_hop[b, a] = 1 / 3
    every = torch.full((10, 10), 0.1)
    found = distance_profile(torch.stack([one_hop, every]), torch.ones(10, 10, dtype=torch.bool), distance=distance,
                             largest=2)  # fmt: skip
    weight, even = found.shares()
    torch.testing.assert_close(weight, torch.tensor([[0, 1, 0], [0.1, 0.3, 0.6]], dtype=torch.float64))
    torch.testing.assert_close(even, torch.tensor([[0.1, 0.3, 0.6]] * 2, dtype=torch.float64))
    # on the graph's own edges, all is at distance 1
    reducer = DistanceProfile(distance, 2)
    reducer.update(Edges(token_graph, torch.full((token_graph.num_edges, 2), 1 / 3)))
    torch.testing.assert_close(reducer.result().weight, found.weight[:1].expand(2, -1, -1))


def test_distances_that_do_not_count_and_larger_ones() -> None:
    distance = torch.tensor([[0, 1, 7], [1, 0, -1], [7, -1, 0]])
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.4, 0.5], [0.6, 0.1, 0.3]])
    found = distance_profile(weights, distance=distance, largest=1)
    torch.testing.assert_close(found.weight, torch.tensor([[0.2, 0.8], [0.4, 0.1], [0.3, 0.6]], dtype=torch.float64))
    share, _ = found.shares(torch.tensor([False, True, True]))
    torch.testing.assert_close(share, torch.tensor([(0.8 + 1 / 3) / 2, (0.2 + 2 / 3) / 2], dtype=torch.float64))


def test_local_and_global_heads() -> None:
    spans = [torch.tensor([1.0, 9.0, 4.0]), torch.tensor([0.5, 8.0, 3.0, 7.0])]
    found = local_and_global(spans, 0.3)
    assert found.near == [(1, 0), (0, 0)] and found.far == [(1, 1), (0, 1)]
    with pytest.raises(ArgumentError, match="share"):
        local_and_global(spans, 0.7)


def test_alignment_with_the_tree() -> None:
    depth = torch.tensor([0, 1, 1, 2, 2, 2])
    assert float(topology_alignment(torch.tensor([9.0, 5, 5, 1, 1, 1]), depth)) == pytest.approx(1.0)
    assert float(topology_alignment(torch.tensor([1.0, 5, 5, 9, 9, 9]), depth)) == pytest.approx(-1.0)
    both = topology_alignment(torch.stack([torch.tensor([9.0, 5, 5, 1, 1, 1]), torch.ones(6)]), depth)
    assert both.shape == (2,) and both[1].isnan()
    text = topology_alignment(torch.tensor([9.0, 5, float("nan"), 1, 100]), torch.tensor([0, 1, 1, 2, -1]))
    assert float(text) == pytest.approx(1.0)


def test_shifts_of_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    first = 10 ** (-2 + 0.1 * torch.randn(500, generator=generator, dtype=torch.float64))
    same, moved = first.flip(0), first * 10**0.3
    equal, found = compare_received(first, same), compare_received(first, moved)
    assert equal.ks == 0 and equal.js == 0 and equal.ks_p == 1
    assert found.ks > 0.8 and found.ks_p < 1e-10 and found.t < 0 and 0.4 < found.js <= torch.log(torch.tensor(2.0))
    with pytest.raises(ArgumentError, match="two positive"):
        compare_received(torch.zeros(4), first)


def test_jensen_shannon_by_hand() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    middle = torch.tensor([0.75, 0.25])
    expected = 0.5 * (1 / middle[0]).log() + 0.5 * (0.5 * (0.5 / middle[0]).log() + 0.5 * (0.5 / middle[1]).log())
    assert float(jensen_shannon(p, q)) == pytest.approx(float(expected))
    assert float(jensen_shannon(p, 1 - p)) == pytest.approx(0.6931472)
    assert float(jensen_shannon(p, q)) == float(jensen_shannon(q, p))
