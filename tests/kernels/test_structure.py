"""The two sorted views, and how they are cut into chunks."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from graphattn.testing import random_graph
from graphattn_kernels import Structure, View, _schedule, _segment, csr_attention, sddmm, segment_softmax, spmm

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]


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


@pytest.mark.parametrize("backend", ["gather", "numba", pytest.param("triton", marks=needs_triton)])
def test_arrays_with_strides(backend: str) -> None:
    """Columns of a table, say."""
    graph = random_graph(3, "hub").structure

    def spaced(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else torch.stack([x, x + 1], 1)[:, 0]

    strided = Structure(*(View(*map(spaced, view)) for view in graph))  # type: ignore[arg-type]
    assert not strided.by_target.index.is_contiguous()
    found = []
    for structure in (graph, strided):
        x = torch.linspace(-1, 1, graph.num_targets * 8).view(-1, 2, 4).to(DEVICE).requires_grad_()
        structure = Structure(*(View(*(None if y is None else y.to(DEVICE) for y in view)) for view in structure))
        out, _ = csr_attention(structure, x, x, x, backend=backend)
        scores = sddmm(structure, x, x, backend=backend)
        mixed = spmm(structure, segment_softmax(structure, scores, backend=backend)[0], x, backend=backend)
        found.append([out, mixed, *torch.autograd.grad((out + mixed).square().sum(), x)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("of_tiles", [False, pytest.param(True, marks=pytest.mark.triton)])
def test_a_schedule_that_another_thread_finds_without_hubs_meanwhile(of_tiles: bool) -> None:
    ptr = torch.arange(0, 2 * _schedule.HUB, 2)
    plan = _schedule.make_schedule(ptr, int(ptr[-1]), _schedule.HUB)
    assert plan.hubs is not None
    entry: Any = _schedule._Entry(plan, _schedule.HUB)
    if of_tiles:
        pytest.importorskip("triton")
        from graphattn_kernels.block_attention.impl.triton.plan import _Entry

        entry = _Entry(plan)

    class Counted:
        def query(self) -> bool:
            entry.counted = None
            entry.latest()
            return True

    entry.counted = Counted()
    assert entry.latest().hubs is None and torch.equal(entry.latest().row, plan.row[plan.num_parts :])
