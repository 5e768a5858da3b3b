"""Mutual agreement of the two ends of an edge."""

from __future__ import annotations

import pytest
import torch

from graphattn import TokenGraph, edge_weights, patterns
from graphattn.errors import ArgumentError
from graphattn.normalize import Mutual
from graphattn.normalize.mutual import reverse_where_any
from graphattn.testing import GRAPH_KINDS, random_graph


def test_by_hand() -> None:
    """0 <-> 1, 1 <-> 1, 0 -> 2."""
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1, 1, 0], [1, 0, 1, 2]]), 3)
    p = torch.tensor([0.5, 0.2, 0.6, 0.9], dtype=torch.float64)
    got = edge_weights(graph, None, None, score=p.logit().unsqueeze(1), normalizer=Mutual(one_way="zero"))
    torch.testing.assert_close(got.squeeze(1), torch.tensor([0.1, 0.1, 0.36, 0.0], dtype=torch.float64))
    got = edge_weights(graph, None, None, score=p.logit().unsqueeze(1), normalizer=Mutual("min", "zero"))
    torch.testing.assert_close(got.squeeze(1), torch.tensor([0.2, 0.2, 0.6, 0.0], dtype=torch.float64))
    with pytest.raises(ArgumentError, match="edge 0 -> 2 has no reverse"):
        edge_weights(graph, None, None, score=p.unsqueeze(1), normalizer="mutual")


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_reverses_are_found_on_any_graph(kind: str) -> None:
    """Of duplicates the first goes with the first, and whoever is found finds back."""
    graph = random_graph(3, kind)
    reverse, there = reverse_where_any(graph)
    every = torch.ones(graph.num_edges, dtype=torch.bool) if there is None else there
    edges = [tuple(e) for e in graph.edge_index.T.tolist()]
    seen: dict[tuple[int, int], int] = {}
    copies = []
    for e in edges:
        copies.append(seen.get(e, 0))
        seen[e] = copies[-1] + 1
    for e, ((s, t), copy) in enumerate(zip(edges, copies, strict=True)):
        assert bool(every[e]) == (seen.get((t, s), 0) > copy)
        if every[e]:
            back = int(reverse[e])
            assert edges[back] == (t, s) and copies[back] == copy and int(reverse[back]) == e


@pytest.mark.parametrize("combine", ["product", "min"])
def test_gradient_and_symmetry(combine: str) -> None:
    graph = patterns.grid(3, 4)
    scores = torch.randn(graph.num_edges, 2, dtype=torch.float64, requires_grad=True)
    rule = Mutual(combine)
    weights = rule(graph, scores)
    torch.testing.assert_close(weights, weights[graph.reverse_edge])
    assert torch.autograd.gradcheck(lambda x: rule(graph, x), scores)
    torch.testing.assert_close(Mutual(combine, "zero")(graph, scores), weights)


def test_no_edges() -> None:
    graph = TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.long), 3)
    for one_way in ("error", "zero"):
        assert Mutual(one_way=one_way)(graph, torch.zeros(0, 2)).shape == (0, 2)


@pytest.mark.parametrize("one_way", ["error", "zero"])
def test_sources_that_are_no_targets_have_no_reverse(one_way: str) -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), num_targets=2, num_sources=3)
    with pytest.raises(ArgumentError, match="needs a square graph, got 2 targets and 3 sources"):
        Mutual(one_way=one_way)(graph, torch.zeros(2, 1))


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="combine must be 'product' or 'min', got 'max'"):
        Mutual("max")
    with pytest.raises(ArgumentError, match="one_way must be 'error' or 'zero', got 'drop'"):
        Mutual(one_way="drop")
