from __future__ import annotations

import hashlib
import subprocess
import sys

import networkx as nx
import pytest
import torch

from graphattn.encoding import WLVocabulary, wl_ids
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def test_published_ids_are_degrees_in_the_order_of_md5(graph_of):
    nx_graph = nx.barabasi_albert_graph(40, 2, seed=0)
    degree = [nx_graph.degree[node] for node in range(40)]
    order = sorted(set(degree), key=lambda d: md5("_".join(["1"] * (d + 1))))
    assert len(order) > 4 and order != sorted(order)
    assert wl_ids(graph_of(nx_graph), mode="published").tolist() == [order.index(d) + 1 for d in degree]


def test_published_ids_after_three_rounds_by_hand(graph_of):
    # A path of five: colours after one stored round are a (ends) and b (inner tokens).
    first = {degree: md5("_".join(["1"] * (degree + 1))) for degree in (1, 2)}
    rank = {degree: sorted(first.values()).index(digest) + 1 for degree, digest in first.items()}
    a, b = rank[1], rank[2]
    end, next_to_end, middle = md5(f"{a}_{b}"), md5("_".join([str(b), *sorted(f"{a}{b}")])), md5(f"{b}_{b}_{b}")
    ids = {digest: number for number, digest in enumerate(sorted({end, next_to_end, middle}), 1)}
    expected = [ids[end], ids[next_to_end], ids[middle], ids[next_to_end], ids[end]]
    assert wl_ids(graph_of(nx.path_graph(5)), 3, mode="published").tolist() == expected


def test_published_ids_are_per_graph(graph_of, batch_of):
    members = [graph_of(nx.star_graph(3)), graph_of(nx.path_graph(4)), graph_of(nx.cycle_graph(5))]
    together = wl_ids(batch_of(members), mode="published")
    assert torch.equal(together, torch.cat([wl_ids(member, mode="published") for member in members]))
    assert together[-5:].tolist() == [1] * 5
    # Degree 3 in the star and degree 2 in the path share ids 1 and 2: not comparable across graphs.
    assert set(together[:4].tolist()) == set(together[4:8].tolist()) == {1, 2}


def test_published_rounds_of_one_keep_the_first_colour(graph_of):
    assert wl_ids(graph_of(nx.star_graph(3)), 1, mode="published").tolist() == [1] * 4


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_canonical_colours_split_tokens_as_refinement_does(graph_of, batch_of, rounds):
    graphs = [nx.gnp_random_graph(15, 0.15, seed=seed) for seed in range(6)]
    ids = wl_ids(batch_of([graph_of(graph) for graph in graphs]), rounds)
    union = nx.disjoint_union_all(graphs)
    colours = dict.fromkeys(union, "start")
    for _ in range(rounds):
        colours = {
            node: md5(colours[node] + "|" + ",".join(sorted(colours[other] for other in union[node]))) for node in union
        }
    expected = [colours[node] for node in range(len(union))]
    pairs = set(zip(ids.tolist(), expected, strict=True))
    assert len(pairs) == len(set(ids.tolist())) == len(set(expected)) > 3
    assert (ids >= 0).all()


def test_canonical_colours_are_comparable_across_graphs(graph_of, batch_of):
    path, longer = graph_of(nx.path_graph(6)), graph_of(nx.path_graph(9))
    assert wl_ids(path)[:3].tolist() == wl_ids(longer)[:3].tolist()
    assert torch.equal(wl_ids(batch_of([path, longer])), torch.cat([wl_ids(path), wl_ids(longer)]))


def test_canonical_colours_are_the_same_in_every_process(graph_of):
    program = (
        "import torch; from graphattn.graph import TokenGraph; from graphattn.encoding import wl_ids;"
        "print(wl_ids(TokenGraph.from_edge_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)).tolist())"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == str(wl_ids(graph_of(nx.path_graph(3))).tolist())


def test_permutation_equivariance_and_edge_form(graph_of):
    graph, order = graph_of(nx.gnp_random_graph(30, 0.15, seed=3)), torch.randperm(30)
    for mode in ("canonical", "published"):
        ids = wl_ids(graph, 3, mode=mode)
        assert torch.equal(wl_ids(TokenGraph.from_edge_index(order[graph.edge_index], 30), 3, mode=mode)[order], ids)
        # Once or twice, one way or both: the same neighbours.
        source, target = graph.edge_index
        one_way = graph.edge_index[:, source < target]
        for edges in (one_way, torch.cat([one_way, graph.edge_index], 1)):
            assert torch.equal(wl_ids(TokenGraph.from_edge_index(edges, 30), 3, mode=mode), ids)


def test_labels_and_buckets(graph_of):
    graph = graph_of(nx.cycle_graph(6))
    assert wl_ids(graph).unique().numel() == 1
    labels = torch.tensor([0, 0, 0, 1, 0, 0])
    assert wl_ids(graph, 2, labels=labels).unique().numel() == 4  # by distance from the label
    assert wl_ids(graph, 3, labels=labels).unique().numel() == 4
    ids = wl_ids(graph_of(nx.gnp_random_graph(50, 0.1, seed=0)), num_ids=7)
    assert ids.min() >= 0 and ids.max() < 7 and ids.unique().numel() > 3


def test_vocabulary(graph_of):
    train = [graph_of(nx.path_graph(6)), graph_of(nx.star_graph(3))]
    vocabulary = WLVocabulary.fit(train)
    assert len(vocabulary) == 6  # five colours and the unknown
    ids = [vocabulary(wl_ids(graph)) for graph in train]
    assert torch.cat(ids).unique().tolist() == [1, 2, 3, 4, 5]
    assert vocabulary(wl_ids(graph_of(nx.path_graph(20))))[:3].tolist() == ids[0][:3].tolist()
    assert vocabulary(wl_ids(graph_of(nx.complete_graph(5)))).tolist() == [0] * 5
    assert WLVocabulary.fit([])(wl_ids(train[0])).tolist() == [0] * 6
    assert repr(vocabulary) == repr(WLVocabulary.fit(reversed(train))) != repr(WLVocabulary.fit(train[:1]))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rounds": 0}, ArgumentError, "rounds must be at least 1"),
        ({"mode": "weak"}, ArgumentError, "mode must be one of"),
        ({"mode": "published", "num_ids": 3}, ArgumentError, 'need mode="canonical"'),
        ({"num_ids": 0}, ArgumentError, "num_ids must be at least 1"),
        ({"labels": torch.zeros(4)}, ArgumentTypeError, "labels must be an integer tensor"),
        ({"labels": torch.zeros(5).long()}, ArgumentError, r"labels must have shape \[4\]"),
    ],
)
def test_bad_input(graph_of, options, error, text):
    with pytest.raises(error, match=text):
        wl_ids(graph_of(nx.path_graph(4)), **options)
    with pytest.raises(ArgumentTypeError, match="colours must be an int64 tensor"):
        WLVocabulary(torch.zeros(3))
