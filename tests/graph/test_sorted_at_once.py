"""The views that CUDA makes in a few launches are those that PyTorch's operations make."""

from __future__ import annotations

import gc
import importlib
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.edges import sorted_at_once
from graphattn.testing import require_or_skip
from graphattn_kernels import _schedule

require_or_skip("triton")
CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs CUDA or TRITON_INTERPRET=1", allow_module_level=True)

pytestmark = pytest.mark.triton
DEVICE = "cuda" if CUDA else "cpu"


def random_edges(sources: int, targets: int, edges: int) -> Tensor:
    generator = torch.Generator().manual_seed(edges)
    ends = [torch.randint(0, size, (edges,), generator=generator) for size in (sources, targets)]
    return torch.stack(ends).to(DEVICE)


HUB = torch.stack([torch.arange(300), torch.zeros(300, dtype=torch.int64)]).to(DEVICE)
GRAPHS = {
    "one edge": (random_edges(1, 1, 1), 1, 1),
    "square": (random_edges(50, 50, 400), 50, 50),
    "bipartite": (random_edges(7, 300, 260), 7, 300),
    "more sources than edges": (random_edges(700, 3, 5), 700, 3),
    "duplicates": (random_edges(3, 2, 300), 3, 2),
    "hub": (HUB, 300, 1),
    "hub, seen from sources": (HUB.flip(0), 1, 300),
    "int32": (random_edges(50, 50, 400).int(), 50, 50),
    "strided": (random_edges(50, 50, 400).t().contiguous().t(), 50, 50),
    "every other": (random_edges(50, 50, 400)[:, ::2], 50, 50),
    "keys that 32 bits just hold": (random_edges(46340, 46339, 300), 46340, 46339),
    "keys beyond 32 bits": (random_edges(46400, 46400, 300), 46400, 46400),
}


def plain(edge_index: Tensor, sources: int, targets: int) -> TokenGraph:
    return TokenGraph.from_edge_index(edge_index.cpu(), num_targets=targets, num_sources=sources, validate=False)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_views_are_those_of_plain_sorts(name: str) -> None:
    edge_index, sources, targets = GRAPHS[name]
    found, expected = sorted_at_once(edge_index, targets, sources), plain(edge_index, sources, targets)
    assert found is not None and found.num_sources == sources and found.num_targets == targets
    pairs = [*zip(found.csr, expected.csr, strict=True), *zip(found.csc, expected.csc, strict=True)]
    for mine, other in zip(found.structure, expected.structure, strict=True):
        pairs += zip(mine, other, strict=True)
    pairs.append((found.edge_index, edge_index.long()))
    for mine, other in pairs:
        assert mine is not None and other is not None
        assert mine.is_contiguous() and mine.data_ptr() % 16 == 0
        torch.testing.assert_close(mine.cpu(), other.cpu(), rtol=0, atol=0)


@pytest.mark.parametrize("longest", [_schedule.SHORT, _schedule.SHORT + 1, _schedule.HUB, _schedule.HUB + 1])
@pytest.mark.parametrize("turned", [False, True], ids=["targets", "sources"])
def test_what_is_known_of_the_longest_row(longest: int, turned: bool) -> None:
    """Rows stand in their own order up to SHORT edges, and not from one more on; either way every edge has its run."""
    long = torch.stack([torch.arange(longest), torch.full((longest,), 2)])
    edge_index = torch.cat([torch.tensor([[0, 1, 0], [0, 0, 4]]), long], dim=1).to(DEVICE)
    edge_index = edge_index.flip(0) if turned else edge_index
    sizes = (300, 6)[:: 1 if turned else -1]
    graph = sorted_at_once(edge_index, *sizes)
    assert graph is not None
    view = graph.structure.by_source if turned else graph.structure.by_target
    schedule = _schedule.schedule_of(view)
    in_order = torch.equal(schedule.row.cpu(), torch.arange(6, dtype=schedule.row.dtype))
    assert in_order == (longest == _schedule.SHORT)
    runs = [list(range(b, e)) for b, e in zip(schedule.begin.tolist(), schedule.end.tolist(), strict=True)]
    assert sorted(sum(runs, [])) == list(range(view.num_edges))
    assert (schedule.hubs is not None) == (longest > _schedule.HUB)


def test_what_is_known_is_forgotten_with_the_graph() -> None:
    graph = sorted_at_once(random_edges(50, 50, 400), 50, 50)
    assert graph is not None
    keys = [id(view.ptr) for view in graph.structure]
    assert all(key in _schedule._schedules for key in keys)
    del graph
    gc.collect()
    assert not any(key in _schedule._schedules for key in keys)


def test_kinds_of_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are compiled for the widths of whole numbers, each by itself. Nothing runs, so that sizes may be any."""
    kernels = importlib.import_module("graphattn_kernels._sorting_triton")
    seen: dict[Any, Any] = {}

    def launch(kernel: Any, grid: Any, args: tuple[Any, ...], constants: Any, kind: Any) -> None:
        looks = [x.dtype if isinstance(x, Tensor) else x >= 2**31 for x in args]
        assert seen.setdefault((id(kernel), kind), looks) == looks

    class Sized:
        """As much as is asked for, in no memory."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def empty(size: Any, *, dtype: torch.dtype, device: Any) -> Tensor:
            return torch.zeros((), dtype=dtype, device=device).expand(size)

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(kernels, "torch", Sized())
    wide, few = 2**31 + 5, torch.zeros(6, dtype=torch.int64, device=DEVICE)
    for strides in ((3, 1), (1, 2), (3, wide)):
        for targets, sources in ((4, 4), (wide, 4), (4, wide), (2**31 - 1, 4), (wide, wide)):
            kernels.sort_edges(few.as_strided((2, 1), strides), targets, sources, torch.int32)
    assert len(seen) > 9


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**40)])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("at", [0, 150, 299])
def test_an_index_out_of_range_is_named(bad: int, row: int, at: int) -> None:
    edge_index = random_edges(5, 5, 300)
    edge_index[row, at] = bad
    what = ("source", "target")[row]
    with pytest.raises(ArgumentError, match=rf"edge_index\[{row}\] \({what}\) must lie in 0..4 .* got {bad}"):
        sorted_at_once(edge_index, 5, 5)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)])
def test_edges_without_tokens_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match="must lie in"):
        sorted_at_once(torch.zeros(2, 4, dtype=torch.int64, device=DEVICE), *sizes)


def test_no_edges_are_left_to_others() -> None:
    assert sorted_at_once(torch.zeros(2, 0, dtype=torch.int64, device=DEVICE), 3, 3) is None


@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_a_graph_on_cuda_is_made_so() -> None:
    edge_index = random_edges(50, 50, 400)
    graph = TokenGraph.from_edge_index(edge_index, 50)
    assert graph._structure is not None
    with pytest.raises(ArgumentError, match=r"edge_index\[1\] \(target\) must lie in 0..9"):
        TokenGraph.from_edge_index(edge_index, num_targets=10, num_sources=50)
    ptr = torch.tensor([0, 20, 50], device=DEVICE)
    within = torch.cat([edge_index[:, :5] % 20, edge_index[:, :5] % 30 + 20], dim=1)
    batch = TokenGraph.from_edge_index(within, 50, ptr=ptr)
    assert batch.num_members == 2 and torch.equal(batch.edge_index, within)
    with pytest.raises(ArgumentError, match="join two members"):
        TokenGraph.from_edge_index(torch.tensor([[0], [30]], device=DEVICE), 50, ptr=ptr)


def test_what_has_no_plain_memory_is_left_to_others() -> None:
    """A kernel would read from the address of a wrapper, which is none."""
    edge_index = random_edges(5, 5, 20)
    special: Tensor = edge_index.as_subclass(type("Special", (Tensor,), {}))
    assert sorted_at_once(special, 5, 5) is None
    made = TokenGraph.from_edge_index(special, 5)
    assert torch.equal(made.edge_index, edge_index)
    found = torch.func.grad(lambda x: x * TokenGraph.from_edge_index(edge_index, 5).num_edges)(torch.ones(()))
    assert found == 20
    left = torch.func.grad(lambda x: x if sorted_at_once(edge_index, 5, 5) is None else 0 * x)(torch.ones(()))
    assert left == 1


def test_an_edge_index_of_pyg() -> None:
    pyg = pytest.importorskip("torch_geometric")
    edge_index = random_edges(5, 5, 20)
    special = pyg.EdgeIndex(edge_index, sparse_size=(5, 5))
    assert sorted_at_once(special, 5, 5) is None
    assert torch.equal(TokenGraph.from_edge_index(special, 5).edge_index, edge_index)
