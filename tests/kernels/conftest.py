"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.testing import GRAPH_KINDS, random_graph
from graphattn_kernels import Structure, _segment

_CASES = [(kind, bipartite) for kind in (*GRAPH_KINDS, "sorted") for bipartite in (False, True)]


@pytest.fixture(params=_CASES, ids=lambda case: f"{case[0]}-{'bipartite' if case[1] else 'square'}")
def structure(request: pytest.FixtureRequest) -> Structure:
    """Every kind of small graph, square and bipartite."""
    kind, bipartite = request.param
    if kind != "sorted":
        return random_graph(3, kind, bipartite=bipartite).structure
    # Edges sorted already: there is no permutation, and the transposed structure has one on its other side.
    graph = random_graph(3, "hub", bipartite=bipartite)
    structure = TokenGraph.from_csr(graph.rowptr, graph.col, num_sources=graph.num_sources).structure
    assert structure.by_target.edge_id is None
    return structure


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer budget of a few edges, so that small graphs take several chunks."""
    monkeypatch.setattr(_segment, "_CHUNK_ELEMENTS", {"cpu": 24, "cuda": 24})


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Seeded normal numbers in float64 (or ``dtype``)."""
    random = torch.Generator().manual_seed(11)

    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random).to(dtype)

    return normal
