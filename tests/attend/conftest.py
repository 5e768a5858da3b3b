"""Fixtures of the tests of attend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.testing import GRAPH_KINDS, random_graph

_CASES = [(kind, bipartite) for kind in GRAPH_KINDS for bipartite in (False, True)]


@pytest.fixture(params=_CASES, ids=lambda case: f"{case[0]}-{'bipartite' if case[1] else 'square'}")
def graph(request: pytest.FixtureRequest) -> TokenGraph:
    """Every kind of small graph, square and bipartite."""
    kind, bipartite = request.param
    return random_graph(7, kind, bipartite=bipartite)


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Seeded normal numbers in float64 (or ``dtype``)."""
    random = torch.Generator().manual_seed(17)

    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random).to(dtype)

    return normal
