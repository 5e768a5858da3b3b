"""Trees: depths and distances against networkx, perturbations that change links and keep what they should."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.insight import PERTURBATIONS, linkage_reliance, perturb, token_distance, tree_depth, tree_distance
from graphattn_datasets.text_graphs import EgoTrees


def ragged_trees(batch: int = 5, size: int = 20, seed: int = 0) -> EgoTrees:
    """Trees of depth 2 in pre-order, some vertices of depth 1 without children, each with its own node numbers."""
    generator = torch.Generator().manual_seed(seed)
    node = torch.full((batch, size), -1)
    parent, depth = node.clone(), node.clone()
    for row in range(batch):
        rows: list[tuple[int, int]] = [(-1, 0)]
        for _ in range(4):
            rows.append((0, 1))
            above = len(rows) - 1
            rows += [(above, 2)] * int(torch.randint(0, 4, (), generator=generator))
        count = len(rows)
        node[row, :count] = torch.arange(count) + 100 * row
        parent[row, :count], depth[row, :count] = torch.tensor(rows).T
    return EgoTrees(node, parent, depth)


def links(trees: EgoTrees, row: int) -> set[tuple[int, int]]:
    """Pairs of linked nodes."""
    node, parent = trees.node[row].tolist(), trees.parent[row].tolist()
    return {(node[above], node[vertex]) for vertex, above in enumerate(parent) if above >= 0}


def test_depths_and_distances_are_those_of_networkx() -> None:
    trees = ragged_trees()
    assert torch.equal(torch.where(trees.node >= 0, tree_depth(trees.parent), -1), trees.depth)
    found = tree_distance(trees.parent, 4)
    for row in range(5):
        graph = nx.Graph([(v, int(p)) for v, p in enumerate(trees.parent[row]) if p >= 0])
        graph.add_nodes_from(range(20))
        lengths = dict(nx.all_pairs_shortest_path_length(graph))
        expected = [[lengths[a].get(b, 5) for b in range(20)] for a in range(20)]
        assert found[row].tolist() == expected
    assert int(tree_distance(trees.parent, 2).max()) == 3
    with pytest.raises(ArgumentError, match="cycle"):
        tree_depth(torch.tensor([1, 0]))


def test_distances_of_tokens() -> None:
    distance = tree_distance(torch.tensor([[-1, 0, 1]]), 4)
    found = token_distance(distance, torch.tensor([[-1, 0, 2, -1, 1]]))
    expected = [[-1] * 5, [-1, 0, 2, -1, 1], [-1, 2, 0, -1, 1], [-1] * 5, [-1, 1, 1, -1, 0]]
    assert found[0].tolist() == expected


def in_pre_order(parent: Tensor, count: int) -> bool:
    stack: list[int] = []
    for vertex in range(count):
        while stack and stack[-1] != int(parent[vertex]):
            stack.pop()
        if vertex > 0 and not stack:
            return False
        stack.append(vertex)
    return True


@pytest.mark.parametrize("level", PERTURBATIONS)
def test_perturbations_keep_the_centre_the_sizes_and_the_order(level: str) -> None:
    trees, changed = ragged_trees(), 0
    found = perturb(trees, level, torch.Generator().manual_seed(1))
    again = perturb(trees, level, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert torch.equal(found.count, trees.count) and torch.equal(found.node[:, 0], trees.node[:, 0])
    for row in range(5):
        count = int(trees.count[row])
        assert in_pre_order(found.parent[row], count)
        assert torch.equal(found.depth[row, :count], tree_depth(found.parent)[row, :count])
        assert (found.depth[row] == 1).sum() == (trees.depth[row] == 1).sum()
        before, after = links(trees, row), links(found, row)
        changed += before != after
        if level != "IV":
            assert sorted(found.node[row].tolist()) == sorted(trees.node[row].tolist())
        if level in ("I", "II"):  # who is at which depth stays
            for depth in (1, 2):
                old = set(trees.node[row][trees.depth[row] == depth].tolist())
                assert set(found.node[row][found.depth[row] == depth].tolist()) == old
        if level == "IV":
            foreign = [n for n in found.node[row, 1:count].tolist() if n // 100 != row]
            assert 0 < len(foreign) < count - 1
            assert not set(foreign) & {100 * other for other in range(5)}  # no centre of another tree
    assert changed >= 4


def test_swapping_children_swaps_all_of_them() -> None:
    trees = EgoTrees(
        torch.tensor([[9, 1, 11, 12, 2, 21]]), torch.tensor([[-1, 0, 1, 1, 0, 4]]), torch.tensor([[0, 1, 2, 2, 1, 2]])
    )
    found = perturb(trees, "I", torch.Generator().manual_seed(0))
    assert found.node.tolist() == [[9, 1, 21, 2, 11, 12]]
    assert found.parent.tolist() == [[-1, 0, 1, 0, 3, 3]] and found.depth.tolist() == [[0, 1, 2, 1, 2, 2]]


def test_reliance_is_what_a_reader_of_links_loses() -> None:
    trees = ragged_trees(batch=20)
    truth = [links(trees, row) for row in range(20)]

    def by_links(given: EgoTrees) -> float:
        return 100.0 * sum(links(given, row) == truth[row] for row in range(20)) / 20

    def by_nodes(given: EgoTrees) -> float:
        return (
            100.0 * sum(sorted(given.node[row].tolist()) == sorted(trees.node[row].tolist()) for row in range(20)) / 20
        )

    lost = linkage_reliance(by_links, trees, torch.Generator().manual_seed(0))
    assert list(lost) == list(PERTURBATIONS) and all(value >= 60 for value in lost.values())
    blind = linkage_reliance(by_nodes, trees, torch.Generator().manual_seed(0))
    assert blind["I"] == blind["II"] == blind["III"] == 0 and blind["IV"] == 100


def test_bad_levels_and_lonely_trees_are_refused() -> None:
    trees = ragged_trees(batch=1)
    with pytest.raises(ArgumentError, match="level must be one of"):
        perturb(trees, "V", torch.Generator())
    with pytest.raises(ArgumentError, match="two trees"):
        perturb(trees, "IV", torch.Generator())
