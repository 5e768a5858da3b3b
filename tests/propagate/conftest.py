"""What the tests of propagators share: the matrix, and how much memory is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.testing import LiveMemory


@pytest.fixture
def live() -> type[LiveMemory]:
    return LiveMemory


@pytest.fixture
def dense() -> Callable[[TokenGraph, Tensor], Tensor]:
    """``[H, T, S]`` of weights ``[E, H]``; duplicate edges add."""

    def matrix(graph: TokenGraph, weights: Tensor) -> Tensor:
        source, target = graph.edge_index
        shape = (graph.num_targets, graph.num_sources, weights.shape[1])
        return weights.new_zeros(shape).index_put((target, source), weights, accumulate=True).permute(2, 0, 1)

    return matrix


@pytest.fixture
def gradients_agree() -> Callable[..., None]:
    """Two results have the same value and the same gradients with respect to the leaves."""

    def check(got: Tensor, expected: Tensor, *leaves: Tensor, tolerance: float = 1e-9) -> None:
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(got, expected, **close)
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        slope = torch.randn_like(expected)
        found = [torch.autograd.grad(out, leaves, slope, **options) for out in (got, expected)]
        torch.testing.assert_close(*found, **close)

    return check
