"""Graphs to test with, and the matrix that says what a graph is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.testing import GRAPH_KINDS, random_graph


def _counts(graph: TokenGraph) -> Tensor:
    """How often each edge is there, ``[T, S]``, straight from ``edge_index``."""
    counts = torch.zeros(graph.num_targets, graph.num_sources, dtype=torch.int64)
    source, target = graph.edge_index
    return counts.index_put_((target, source), torch.ones_like(source), accumulate=True)


@pytest.fixture
def counts() -> Callable[[TokenGraph], Tensor]:
    return _counts


@pytest.fixture(params=GRAPH_KINDS)
def square(request: pytest.FixtureRequest) -> TokenGraph:
    """A small square graph of each kind, edges in random order."""
    return random_graph(3, request.param)


@pytest.fixture(params=[(kind, bipartite) for kind in GRAPH_KINDS for bipartite in (False, True)], ids=str)
def graph(request: pytest.FixtureRequest) -> TokenGraph:
    """A small graph of each kind, square and bipartite."""
    kind, bipartite = request.param
    return random_graph(5, kind, bipartite=bipartite)


@pytest.fixture
def empty() -> TokenGraph:
    """No token at all."""
    return TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)
