"""Invariants of the generated sets PATTERN and CLUSTER."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torch_geometric")

from torch_geometric.loader import DataLoader

from graphattn.errors import ArgumentError
from graphattn_datasets import (
    SBMCluster,
    SBMPattern,
    load_dataset,
    sbm_cluster_graphs,
    sbm_pattern_graphs,
    sbm_patterns,
)

GENERATORS = [sbm_cluster_graphs, sbm_pattern_graphs]


def dense(graph):
    adjacency = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.bool)
    adjacency[graph.edge_index[1], graph.edge_index[0]] = True
    return adjacency


def equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("x", "edge_index", "y"))


@pytest.mark.parametrize("generate", GENERATORS)
def test_edges_are_symmetric_without_loops_and_sorted_by_target_then_source(generate):
    for graph in generate(20):
        assert graph.validate()
        assert graph.x.dtype == graph.y.dtype == graph.edge_index.dtype == torch.int64
        adjacency = dense(graph)
        assert torch.equal(adjacency, adjacency.T)
        assert not adjacency.diagonal().any()
        source, target = graph.edge_index
        assert (torch.diff(target * graph.num_nodes + source) > 0).all()


@pytest.mark.parametrize("generate", GENERATORS)
def test_same_seed_same_graphs_and_every_other_seed_or_split_differs(generate):
    reference = generate(3, "train", 7)
    assert all(map(equal, reference, generate(3, "train", 7)))
    assert all(map(equal, reference, generate(5, "train", 7)))  # more graphs begin with the same
    for other in (generate(3, "train", 8), generate(3, "val", 7), generate(3, "test", 7)):
        assert not any(map(equal, reference, other))


def test_cluster_has_one_node_for_each_feature_value_in_its_community():
    for graph in sbm_cluster_graphs(20):
        sizes = torch.bincount(graph.y, minlength=6)
        assert sizes.numel() == 6 and 5 <= int(sizes.min()) and int(sizes.max()) <= 34
        assert torch.bincount(graph.x, minlength=7)[1:].tolist() == [1] * 6
        marked = graph.x > 0
        assert torch.equal(graph.x[marked] - 1, graph.y[marked])


def test_pattern_comes_first_in_an_unpermuted_graph_and_is_shared_by_the_splits():
    patterns = sbm_patterns(4, seed=3)
    assert len({pattern.adjacency.tobytes() for pattern in patterns}) == 4
    for split in ("train", "val", "test"):
        for index, graph in enumerate(sbm_pattern_graphs(9, split, 3, num_patterns=4, permute=False)):
            pattern = patterns[index % 4]
            size = len(pattern.x)
            assert 5 <= size <= 34
            assert torch.equal(dense(graph)[:size, :size], torch.from_numpy(pattern.adjacency))
            assert torch.equal(graph.x[:size], torch.from_numpy(pattern.x))
            assert graph.y.tolist() == [1] * size + [0] * (graph.num_nodes - size)


@pytest.mark.parametrize("generate", GENERATORS)
def test_nodes_are_numbered_at_random(generate):
    for graph in generate(10):
        changes = int((torch.diff(graph.y) != 0).sum())
        assert changes > 6  # in order there would be at most five


def test_cluster_sizes_and_densities_are_the_published_ones():
    graphs = sbm_cluster_graphs(300, permute=False)
    # Six communities uniform on 5..34: mean 117, standard error 21.2 / sqrt(300).
    assert abs(sum(graph.num_nodes for graph in graphs) / 300 - 117) < 5
    counts = torch.zeros(2, 2)  # (same community?, edge?)
    for graph in graphs:
        same = graph.y[:, None] == graph.y[None]
        off = ~torch.eye(graph.num_nodes, dtype=torch.bool)
        edges = dense(graph)
        counts += torch.tensor([[float((off & (same == s) & (edges == e)).sum()) for e in (0, 1)] for s in (0, 1)])
    across, inside = (counts[:, 1] / counts.sum(1)).tolist()
    assert inside == pytest.approx(0.55, abs=0.01) and across == pytest.approx(0.25, abs=0.01)


def test_pattern_densities_are_the_published_ones():
    graphs = sbm_pattern_graphs(300, permute=False)
    totals = torch.zeros(3, 2)  # pattern-pattern, pattern-background, background-background: (edges, pairs)
    for graph in graphs:
        kind, edges = 2 - graph.y[:, None] - graph.y[None], dense(graph)
        off = ~torch.eye(graph.num_nodes, dtype=torch.bool)
        for k in range(3):
            chosen = (kind == k) & off
            totals[k] += torch.tensor([float((edges & chosen).sum()), float(chosen.sum())])
    inside, links, background = (totals[:, 0] / totals[:, 1]).tolist()
    # Background: 0.5 inside communities and 0.35 across; a pair is inside with probability 0.2 to 0.26.
    assert inside == pytest.approx(0.5, abs=0.03)
    assert links == pytest.approx(0.5, abs=0.01)
    assert 0.375 < background < 0.395
    ids = torch.bincount(torch.cat([graph.x for graph in graphs]), minlength=3).float()
    assert torch.allclose(ids / ids.sum(), torch.full((3,), 1 / 3), atol=0.02)


def test_data_sets_hold_what_the_generators_make():
    for cls, graphs in (
        (SBMPattern, sbm_pattern_graphs(5, "val", 2, num_patterns=6)),
        (SBMCluster, sbm_cluster_graphs(5, "val", 2)),
    ):
        dataset = cls(split="val", seed=2, num_graphs=(6, 5, 4))
        assert len(dataset) == 5 and all(map(equal, dataset, graphs))
        assert "generated" in dataset.exactness


def test_small_pattern_set_shares_its_patterns_between_the_splits(tmp_path):
    train, val, test = load_dataset("pattern", tmp_path, num_graphs=(3, 2, 2), seed=1)
    assert (len(train), len(val), len(test)) == (3, 2, 2)
    sizes = [int(graph.y.sum()) for graph in train]
    assert [int(graph.y.sum()) for graph in val] == [int(graph.y.sum()) for graph in test] == sizes[:2]


def test_published_counts():
    assert SBMPattern.published == (10_000, 2_000, 2_000)
    assert SBMCluster.published == (10_000, 1_000, 1_000)


def test_data_loader_batches_the_graphs():
    dataset = SBMCluster(num_graphs=(5, 1, 1))
    batches = list(DataLoader(dataset, batch_size=3))
    assert [batch.num_graphs for batch in batches] == [3, 2]
    second = batches[0].get_example(1)
    assert equal(second, dataset[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split must be one of"),
        ({"num_graphs": 500}, "three counts"),
        ({"num_graphs": (5, 0, 5), "split": "val"}, "positive integer"),
        ({"seed": -1, "num_graphs": (1, 1, 1)}, "non-negative"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        SBMPattern(**arguments)
