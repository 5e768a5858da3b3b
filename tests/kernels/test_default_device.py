"""Tensors of a call say where it runs, not the device that new tensors have by default."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.testing import random_graph
from graphattn_kernels import (
    agreed_edges,
    connected_components,
    csr_attention,
    sddmm,
    segment_softmax,
    segment_sum,
    select_bits,
    select_lists,
    spmm,
    spread,
)

GRAPH = random_graph(4, "hub").structure
RANDOM = torch.Generator().manual_seed(0)
ROWS = torch.randn(GRAPH.num_targets, 2, 4, generator=RANDOM)
EDGES = torch.randn(GRAPH.num_edges, 2, 4, generator=RANDOM)
CUBE = torch.randn(2, 8, 5, 6, generator=RANDOM)
SCORES = torch.randn(2, 5, 40, generator=RANDOM)


def attend(x: Tensor, backend: str) -> tuple[Tensor, ...]:
    return csr_attention(GRAPH, x, x, x, edge_bias=EDGES[..., 0], backend=backend)


def attend_with_edge_rows(x: Tensor, backend: str) -> tuple[Tensor, ...]:
    return csr_attention(GRAPH, x, x, x, edge_rows=EDGES, backend=backend)


def sparse(x: Tensor, backend: str) -> tuple[Tensor, ...]:
    weights, lse = segment_softmax(GRAPH, sddmm(GRAPH, x, x, backend=backend), backend=backend)
    mixed = spmm(GRAPH, weights, x, backend=backend)
    return segment_sum(GRAPH, spread(GRAPH, mixed, backend=backend), backend=backend), lse


def both(call: Callable[[], list[Tensor]]) -> None:
    expected = call()
    with torch.device("meta"):
        found = call()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("backend", ["reference", "gather", "numba"])
@pytest.mark.parametrize("function", [attend, attend_with_edge_rows, sparse])
def test_value_and_gradient(function: Callable[[Tensor, str], tuple[Tensor, ...]], backend: str) -> None:
    def call() -> list[Tensor]:
        x = ROWS.clone().requires_grad_()
        results = function(x, backend)
        slopes = [y.detach().masked_fill(y.isinf(), 0.0) for y in results]
        return [*results, *torch.autograd.grad(results, x, slopes)]

    both(call)


@pytest.mark.parametrize("backend", ["gather", "numba"])
def test_components(backend: str) -> None:
    both(lambda: list(connected_components(agreed_edges(CUBE, backend="gather"), backend=backend)))


def test_choices() -> None:
    both(lambda: [select_bits(SCORES, 5, keep_self=True), *select_lists(SCORES, 5, own=2)])
