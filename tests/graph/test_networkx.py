"""NetworkX graphs: both ways, with labels, keys and attributes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, networkx_attributes, window
from graphattn.testing import random_graph, require_or_skip

networkx = require_or_skip("nx")

KINDS = ("Graph", "DiGraph", "MultiGraph", "MultiDiGraph")
LOPSIDED = torch.tensor([[0, 2, 0], [2, 1, 1]])  # 0 -> 2, 2 -> 1, 0 -> 1


def again(graph: Any, dtype: torch.dtype | None = None) -> Any:
    """There and back."""
    attributes = networkx_attributes(graph, dtype)
    return TokenGraph.from_networkx(graph).to_networkx(**attributes._asdict(), create_using=type(graph))


def test_there_and_back(square: TokenGraph, counts: Callable) -> None:
    out = square.to_networkx()
    assert type(out) is networkx.MultiDiGraph and list(out.nodes) == list(range(square.num_tokens))
    assert sorted(out.edges()) == sorted(map(tuple, square.edge_index.t().tolist()))
    assert torch.equal(counts(TokenGraph.from_networkx(out)), counts(square))
    assert TokenGraph.from_networkx(out).num_tokens == square.num_tokens


def test_names_and_undirected_edges() -> None:
    directed = networkx.DiGraph([("a", "b"), ("a", "c")])
    assert TokenGraph.from_networkx(directed).edge_index.tolist() == [[0, 0], [1, 2]]
    undirected = networkx.Graph([("b", "a"), ("c", "c")])
    assert sorted(TokenGraph.from_networkx(undirected).edge_index.t().tolist()) == [[0, 1], [1, 0], [2, 2]]
    assert TokenGraph.from_networkx(networkx.Graph()).num_tokens == 0
    assert networkx_attributes(networkx.Graph()) == ([], {}, {}, None)


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_that_of_networkx(kind: str) -> None:
    graph = random_networkx(kind, seed=1)
    number = {node: index for index, node in enumerate(graph)}
    directed = graph if graph.is_directed() else graph.to_directed()
    expected = [[number[source], number[target]] for source, target in directed.edges()]
    assert TokenGraph.from_networkx(graph).edge_index.t().tolist() == expected
    attributes = networkx_attributes(graph)
    assert attributes.nodes == list(graph)
    assert attributes.edge_attributes["name"] == [name for _, _, name in directed.edges(data="name")]
    if graph.is_multigraph():
        assert attributes.edge_keys == [key for _, _, key in directed.edges(keys=True)]


def test_as_pyg_reads_it() -> None:
    require_or_skip("pyg")
    from torch_geometric.utils import from_networkx

    weighted = networkx.karate_club_graph()
    for given in (weighted, networkx.MultiDiGraph([(0, 1), (0, 1), (2, 0)])):
        assert torch.equal(TokenGraph.from_networkx(given).edge_index, from_networkx(given).edge_index)
    assert torch.equal(networkx_attributes(weighted).edge_attributes["weight"], from_networkx(weighted).weight)


# --- attributes -----------------------------------------------------------------------------------------------


def random_networkx(kind: str, seed: int) -> Any:
    """Labels of several types in no order, isolated nodes, self-loops, attributes of every sort."""
    draw = random.Random(seed)
    graph = getattr(networkx, kind)()
    labels = [*range(9, 3, -1), "a", "b", ("a", 1), 2.5]
    draw.shuffle(labels)
    for label in labels[: draw.randint(0, len(labels))]:
        graph.add_node(
            label,
            x=[draw.random(), draw.random()],
            label=draw.randint(-5, 5),
            flag=draw.random() < 0.5,
            name=str(draw.random()),
            **({"rare": draw.random()} if draw.random() < 0.5 else {}),
        )
    nodes = list(graph)
    for _ in range(draw.randint(0, 25) if nodes else 0):
        keys = {"key": draw.choice(["road", "rail", 7])} if graph.is_multigraph() and draw.random() < 0.5 else {}
        graph.add_edge(
            *(draw.choice(nodes), draw.choice(nodes)),
            **keys,
            weight=draw.choice([draw.random(), math.inf]),
            name=draw.choice("xyz"),
            image=[[draw.randint(0, 9)] * 2] * 3,
            **({"note": None} if draw.random() < 0.1 else {}),
        )
    return graph


def without_none(graph: Any) -> Any:
    for _, entry in graph.nodes(data=True):
        entry.pop("note", None)
    for *_, entry in graph.edges(data=True):
        entry.pop("note", None)
    return graph


@pytest.mark.parametrize("kind", KINDS)
def test_everything_comes_back(kind: str) -> None:
    for seed in range(40):
        graph = random_networkx(kind, seed)
        result = again(graph, torch.float64)
        assert type(result) is type(graph) and list(result.nodes) == list(graph.nodes)
        assert networkx.utils.graphs_equal(result, without_none(graph)), seed


def test_tensors_where_numeric() -> None:
    graph = networkx.DiGraph()
    graph.add_node("a", x=[0.1, 2], y=1, z=True, s="s", array=np.arange(2, dtype=np.int16), t=torch.ones(2), big=2**80)
    graph.add_node("b", x=[0.2, 3], y=2.5, z=False, s="t", array=np.arange(2, dtype=np.int16), t=torch.ones(2), big=1)
    graph.add_edge("a", "b", n=1, mixed=True, ragged=[1], array=np.float64(0.1))
    graph.add_edge("b", "b", n=2, mixed=3, ragged=[1, 2], array=np.float64(0.2))
    nodes, edges = networkx_attributes(graph)[1:3]
    torch.testing.assert_close(nodes["x"], torch.tensor([[0.1, 2], [0.2, 3]]))
    assert nodes["y"].tolist() == [1, 2.5] and nodes["z"].tolist() == [True, False]
    assert nodes["array"].dtype == torch.int16 and nodes["array"].shape == (2, 2)
    assert torch.equal(nodes["t"], torch.ones(2, 2))
    assert nodes["s"] == ["s", "t"] and nodes["big"] == [2**80, 1]
    assert edges["n"].dtype == torch.int64
    assert edges["mixed"] == [True, 3] and edges["ragged"] == [[1], [1, 2]]
    assert edges["array"].tolist() == [0.1, 0.2], "a numpy number keeps its digits"
    assert networkx_attributes(graph, torch.float64)[1]["x"].tolist() == [[0.1, 2], [0.2, 3]]
    assert networkx_attributes(graph, torch.float64)[1]["z"].dtype == torch.bool
    assert networkx.utils.graphs_equal(again(graph.subgraph(["b"])), again(graph.subgraph(["b"]).copy()))


def test_edge_tensors_of_ours_go_with_their_edges() -> None:
    graph = random_graph(2, "duplicates")
    weight = torch.rand(graph.num_edges)
    out = graph.to_networkx(edge_attributes={"weight": weight}, nodes=[f"t{i}" for i in range(graph.num_tokens)])
    pairs = graph.edge_index.t().tolist()
    expected = sorted((f"t{s}", f"t{t}", w) for (s, t), w in zip(pairs, weight.tolist(), strict=True))
    assert sorted(out.edges(data="weight")) == expected
    read, attributes = TokenGraph.from_networkx(out), networkx_attributes(out)
    found = torch.zeros(graph.num_tokens, graph.num_tokens).index_put_(
        tuple(read.edge_index), attributes.edge_attributes["weight"], accumulate=True
    )
    dense = torch.zeros_like(found).index_put_(tuple(graph.edge_index), weight, accumulate=True)
    torch.testing.assert_close(found, dense)


def test_patterns_and_undirected() -> None:
    out = window(5, 1).to_networkx(create_using=networkx.Graph)
    assert networkx.utils.edges_equal(out.edges, [*((i, i) for i in range(5)), *((i, i + 1) for i in range(4))])
    cleared = networkx.DiGraph([(7, 8)])
    assert window(2, 1).to_networkx(create_using=cleared) is cleared and 7 not in cleared


def test_nan_is_the_same_both_ways() -> None:
    pair = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]))
    nan = torch.full((2, 3), math.nan)
    assert pair.to_networkx(edge_attributes={"x": nan}, create_using=networkx.Graph).number_of_edges() == 1


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda g: TokenGraph.from_networkx(3), ArgumentTypeError, "graph must be a NetworkX graph, got int"),
        (lambda g: networkx_attributes(g), ArgumentTypeError, "graph must be a NetworkX graph, got TokenGraph"),
        (lambda g: g.to_networkx(nodes="ab"), ArgumentError, "nodes must have 3 entries, got 2"),
        (lambda g: g.to_networkx(nodes="aba"), ArgumentError, "nodes must be different labels"),
        (
            lambda g: g.to_networkx(node_attributes={"x": torch.ones(2)}),
            ArgumentError,
            r"node_attributes\['x'\] must have 3 entries, got 2",
        ),
        (
            lambda g: g.to_networkx(edge_attributes={"x": [1]}),
            ArgumentError,
            r"edge_attributes\['x'\] must have 3 entries, got 1",
        ),
        (lambda g: g.to_networkx(create_using=networkx.Graph), ArgumentError, "must be directed .* without their rev"),
        (
            lambda g: (g | g.T).to_networkx(create_using=networkx.Graph, edge_attributes={"x": range(6)}),
            ArgumentError,
            "create_using must be directed where the two directions of an edge differ: 'x' of ",
        ),
        (
            lambda g: TokenGraph.from_edge_index(torch.zeros(2, 2).long()).to_networkx(create_using=networkx.DiGraph),
            ArgumentError,
            "create_using must be a multigraph for edges that are there more than once, got DiGraph",
        ),
        (
            lambda g: g.to_networkx(edge_keys=[0, 1, 2], create_using=networkx.DiGraph),
            ArgumentError,
            "create_using must be a multigraph for edge_keys",
        ),
        (
            lambda g: TokenGraph.from_edge_index(torch.zeros(2, 2).long()).to_networkx(edge_keys=["k", "k"]),
            ArgumentError,
            "edge_keys must differ",
        ),
        (lambda g: random_graph(0, bipartite=True).to_networkx(), ArgumentError, "to_networkx needs a square graph"),
        (lambda g: TokenGraph.per_head([g, g]).to_networkx(), ArgumentError, "without leading dimensions"),
    ],
)
def test_bad_arguments(call: Callable, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        call(TokenGraph.from_edge_index(LOPSIDED))
