"""The two sorted views, and how they are cut into chunks."""

from __future__ import annotations

import pytest
import torch

from graphattn.testing import random_graph
from graphattn_kernels import Structure, View, _segment


def test_views_hold_the_same_edges_sorted_by_each_end(structure: Structure) -> None:
    def edges(view: View) -> list[tuple[int, int, int]]:
        ids = range(view.num_edges) if view.edge_id is None else view.edge_id.tolist()
        return list(zip(ids, view.owner.tolist(), view.index.tolist(), strict=True))

    by_target, by_source = edges(structure.by_target), edges(structure.by_source)
    assert sorted(by_target) == sorted((e, t, s) for e, s, t in by_source)
    for view in structure:
        assert (view.owner.diff() >= 0).all()
        counts = torch.bincount(view.owner.long(), minlength=view.num_owners)
        assert torch.equal(view.ptr.diff().long(), counts)


def test_transpose_swaps_the_views_and_keeps_the_edges(structure: Structure) -> None:
    assert structure.T.by_target is structure.by_source
    assert structure.T.T == structure
    assert (structure.T.num_targets, structure.T.num_sources) == (structure.num_sources, structure.num_targets)
    assert structure.T.num_edges == structure.num_edges


@pytest.mark.parametrize("width", [1, 3, 8, 100])
def test_chunks_cover_every_owner_and_edge_once(structure: Structure, small_chunks: None, width: int) -> None:
    view = structure.by_target
    owners, edges = [], []
    for owner_slice, edge_slice, chunk in _segment.chunks(view, width):
        owners += range(view.num_owners)[owner_slice]
        edges += range(view.num_edges)[edge_slice]
        assert chunk.num_owners == owner_slice.stop - owner_slice.start
        assert chunk.ptr[0] == 0 and chunk.ptr[-1] == chunk.num_edges == edge_slice.stop - edge_slice.start
        assert torch.equal(chunk.index, view.index[edge_slice])
        assert torch.equal(chunk.owner + owner_slice.start, view.owner[edge_slice])
    assert owners == list(range(view.num_owners))
    assert edges == list(range(view.num_edges))


def test_chunks_keep_to_the_budget_but_for_a_single_owner(small_chunks: None) -> None:
    view = random_graph(3, "hub").structure.by_target
    sizes = [(chunk.num_owners, chunk.num_edges) for _, _, chunk in _segment.chunks(view, 4)]
    assert len(sizes) > 2
    budget = 24 // 4
    # A chunk ends with the owner that reaches the budget's mark, so it holds less than the budget and one owner more.
    largest = int(view.ptr.diff().max())
    assert all(edges < budget + largest for _, edges in sizes)
