"""The table of facts, and the picture."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, causal, complete, grid, window
from graphattn.graph.describe import diameter_bounds
from graphattn.testing import random_graph, require_or_skip


def table(graph: TokenGraph) -> dict[str, str]:
    title, *lines = graph.describe().splitlines()
    assert title == type(graph).__name__
    return dict(line.strip().split("  ", 1) for line in lines)


def facts(graph: TokenGraph) -> dict[str, str]:
    return {name: fact.strip() for name, fact in table(graph).items()}


def test_facts() -> None:
    edge_index = torch.tensor([[0, 0, 1, 1, 3], [1, 1, 0, 2, 3]])
    graph = TokenGraph.from_edge_index(edge_index, ptr=torch.tensor([0, 3, 5]))
    assert facts(graph) == {
        "tokens": "5",
        "members": "2 (targets: min 2, median 2.5, mean 2.5, max 3)",
        "edges": "5 (20.000% of all pairs)",
        "in-degree": "min 0, median 1, mean 1, max 2",
        "out-degree": "min 0, median 1, mean 1, max 2",
        "targets that read nothing": "1",
        "duplicate edges": "1",
        "self-loops": "1",
        "symmetric": "no",
        "components": "3 (largest: 3 tokens)",
        "diameter": "2 (largest component, edges both ways)",
        "device": "cpu",
    }


def test_other_kinds() -> None:
    assert "diameter" not in facts(complete(2, 3)) and facts(complete(2, 3))["sources"] == "3"
    assert facts(window(6, 1))["symmetric"] == "yes" and "size=1" in facts(window(6, 1))["rule"]
    heads = facts(TokenGraph.stack([TokenGraph.per_head([window(4, 1), causal(4)])] * 3))
    assert heads["copies"] == "3 batch entries x 2 heads" and heads["edges"].startswith("60 ")
    empty = facts(TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0))
    assert empty["edges"] == "0" and empty["in-degree"] == "none"


def test_a_huge_pattern_is_not_listed() -> None:
    graph = causal(1 << 20)
    assert facts(graph)["edges"] == "at most 549,756,338,176 (not listed)"
    assert graph._csr is None


@pytest.mark.parametrize(
    ("graph", "diameter"),
    [(window(9, 1), 8), (complete(5), 1), (complete(1), 0), (grid(3, 4, neighbours=4), 5), (causal(4), 1)],
)
def test_diameter_bounds(graph: TokenGraph, diameter: int) -> None:
    low, high = diameter_bounds(graph)
    assert low <= diameter <= high <= 2 * max(low, 1)


def test_diameter_bounds_of_random_graphs() -> None:
    networkx = require_or_skip("nx")
    for seed in range(10):
        theirs = networkx.gnp_random_graph(25, 0.08, seed=seed)
        parts = sorted(networkx.connected_components(theirs), key=len)
        if len(parts) > 1 and len(parts[-2]) == len(parts[-1]):
            continue  # no single largest component
        low, high = diameter_bounds(TokenGraph.from_networkx(theirs))
        assert low <= networkx.diameter(theirs.subgraph(parts[-1])) <= high


def test_diameter_bounds_edge_cases() -> None:
    assert diameter_bounds(TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)) == (0, 0)
    assert diameter_bounds(TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 4)) == (0, 0)
    with pytest.raises(ArgumentError, match="diameter_bounds needs a square graph"):
        diameter_bounds(complete(2, 3))


def test_plot() -> None:
    pyplot = require_or_skip("matplotlib.pyplot")
    require_or_skip("nx")
    small, large, wide = window(6, 1), window(300, 1), complete(2, 3)
    _, given = pyplot.subplots()
    assert small.plot(given) is given and not given.axison
    for graph in (large, wide):
        ax = graph.plot()
        assert ax.get_xlabel() == "source (is read)" and ax.get_ylabel() == "target (reads)"
    pyplot.close("all")
    with pytest.raises(ArgumentError, match="plot lists all edges, and Causal.* may have 549,756,338,176"):
        causal(1 << 20).plot()
    with pytest.raises(ArgumentError, match=r"plot needs a graph without leading dimensions, got \[2\]"):
        TokenGraph.per_head([small, small]).plot()


def test_how_full_tiles_are() -> None:
    assert "tiles of 64 x 64           100.0% of their pairs are edges" in complete(128).describe()
    assert "tiles of 64" not in random_graph(0, "duplicates").describe()
    assert "tiles of 64" not in random_graph(0, "no_edges").describe()
