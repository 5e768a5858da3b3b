"""Small graphs for the encodings' tests."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import pytest
import torch

from graphattn.graph import TokenGraph

Make = Callable[[nx.Graph], TokenGraph]


@pytest.fixture
def graph_of() -> Make:
    """A TokenGraph from a NetworkX graph with nodes 0, 1, ...; undirected edges go both ways."""

    def make(graph: nx.Graph) -> TokenGraph:
        edges = [(int(s), int(t)) for s, t in graph.edges]
        if not graph.is_directed():
            edges += [(t, s) for s, t in edges if s != t]
        edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
        return TokenGraph.from_edge_index(edge_index, graph.number_of_nodes())

    return make


@pytest.fixture
def batch_of() -> Callable[[list[TokenGraph]], TokenGraph]:
    """One block-diagonal graph of several."""

    def make(graphs: list[TokenGraph]) -> TokenGraph:
        sizes = torch.tensor([0, *(graph.num_targets for graph in graphs)])
        ptr = sizes.cumsum(0)
        edges = [graph.edge_index + start for graph, start in zip(graphs, ptr.tolist(), strict=False)]
        return TokenGraph.from_edge_index(torch.cat(edges, 1), int(ptr[-1]), ptr=ptr)

    return make
