"""Backends equal the reference in float64, in value and in every gradient, on every kind of graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.testing import assert_backends_equal, random_graph
from graphattn_kernels import (
    Structure,
    csr_attention,
    sddmm,
    segment_softmax,
    segment_sum,
    spmm,
    spread,
)

Draw = Callable[..., Tensor]
HEADS, D, D_V = 3, 4, 5
pytestmark = pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])


@pytest.fixture(autouse=True)
def _chunks(chunked: bool, request: pytest.FixtureRequest) -> None:
    if chunked:
        request.getfixturevalue("small_chunks")


@pytest.mark.parametrize("tail", [(), (HEADS,), (HEADS, D)], ids=["E", "EH", "EHD"])
def test_segment_sum(structure: Structure, draw: Draw, tail: tuple[int, ...]) -> None:
    rows = draw(structure.num_edges, *tail)
    for graph in (structure, structure.T):
        assert_backends_equal(lambda x, backend, graph=graph: segment_sum(graph, x, backend=backend), rows)


def test_spread(structure: Structure, draw: Draw) -> None:
    for graph in (structure, structure.T):
        rows = draw(graph.num_targets, HEADS, D)
        assert_backends_equal(lambda x, backend, graph=graph: spread(graph, x, backend=backend), rows)


@pytest.mark.parametrize("channels", [False, True], ids=["sum", "channels"])
def test_sddmm(structure: Structure, draw: Draw, channels: bool) -> None:
    a, b = draw(structure.num_targets, HEADS, D), draw(structure.num_sources, HEADS, D)
    assert_backends_equal(lambda a, b, backend: sddmm(structure, a, b, channels=channels, backend=backend), a, b)


@pytest.mark.parametrize("tail", [(HEADS,), (HEADS, D)], ids=["EH", "EHD"])
def test_spmm(structure: Structure, draw: Draw, tail: tuple[int, ...]) -> None:
    weights = draw(structure.num_edges, *tail)
    for graph in (structure, structure.T):
        values = draw(graph.num_sources, HEADS, D)
        assert_backends_equal(lambda w, x, backend, graph=graph: spmm(graph, w, x, backend=backend), weights, values)


def test_rows_without_channels(structure: Structure, draw: Draw) -> None:
    q, k, v = (
        draw(structure.num_targets, HEADS, D),
        draw(structure.num_sources, HEADS, D),
        draw(structure.num_sources, HEADS, 0),
    )
    assert_backends_equal(lambda q, k, v, backend: csr_attention(structure, q, k, v, backend=backend)[0], q, k, v)


def test_segment_softmax(structure: Structure, draw: Draw) -> None:
    scores = 3 * draw(structure.num_edges, HEADS)
    assert_backends_equal(lambda s, backend: segment_softmax(structure, s, backend=backend), scores)


_SEED = torch.tensor([5, 2**61])
_OPTIONS = {
    "plain": {},
    "scale-bias": {"scale": 0.3},
    "gate": {},
    "clamp-bias": {"scale": 1.0, "clamp": 1.5},
    "dropout": {"dropout_p": 0.4, "dropout_seed": _SEED},
    "clamp-dropout-bias-gate": {"scale": 1.0, "clamp": 1.5, "dropout_p": 0.4, "dropout_seed": _SEED},
}


@pytest.mark.parametrize("backend", ["gather", "numba"])
@pytest.mark.parametrize("option", _OPTIONS)
def test_csr_attention(structure: Structure, draw: Draw, option: str, backend: str, chunked: bool) -> None:
    for graph in (structure, structure.T):
        targets, sources, edges = graph.num_targets, graph.num_sources, graph.num_edges
        assert_backends_equal(
            lambda q, k, v, bias, gate, backend, graph=graph: csr_attention(
                graph, q, k, v, edge_bias=bias, edge_gate=gate, backend=backend, **_OPTIONS[option]
            ),
            draw(targets, HEADS, D),
            draw(sources, HEADS, D),
            draw(sources, HEADS, D_V),
            draw(edges, HEADS) if "bias" in option else None,
            draw(edges, HEADS, D) if "gate" in option else None,
            backend=backend,
        )


@pytest.mark.parametrize("backend", ["gather", "numba"])
@pytest.mark.parametrize(("heads", "d", "d_v"), [(1, 1, 1), (5, 3, 7), (2, 33, 1)])
def test_csr_attention_at_odd_sizes(draw: Draw, heads: int, d: int, d_v: int, backend: str) -> None:
    structure = random_graph(8, "hub", bipartite=True).structure
    targets, sources, edges = structure.num_targets, structure.num_sources, structure.num_edges
    assert_backends_equal(
        lambda q, k, v, b, backend: csr_attention(structure, q, k, v, edge_bias=b, backend=backend),
        draw(targets, heads, d),
        draw(sources, heads, d),
        draw(sources, heads, d_v),
        draw(edges, 1),  # one bias for all heads
        backend=backend,
    )


def test_rows_whose_scores_are_all_minus_infinity(draw: Draw) -> None:
    """Such a target is masked out: output 0, lse -inf, and no gradient, the same as without an edge."""
    structure = random_graph(2, "dense").structure
    owner = spread(structure, torch.arange(structure.num_targets, dtype=torch.float64))
    masked = (owner == 1) | (owner == 4)
    bias = draw(structure.num_edges, HEADS).masked_fill_(masked.unsqueeze(1), float("-inf"))
    bias[0] = float("-inf")  # a single edge of another row
    q, k, v = (
        draw(structure.num_targets, HEADS, D),
        draw(structure.num_sources, HEADS, D),
        draw(structure.num_sources, HEADS, D),
    )

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return csr_attention(structure, q, k, v, edge_bias=bias, backend=backend)

    for backend in ("gather", "numba"):
        assert_backends_equal(run, q, k, v, bias, backend=backend)
    assert_backends_equal(lambda s, backend: segment_softmax(structure, s, backend=backend), bias)
    for backend in ("reference", "gather", "numba"):
        out, lse = run(q, k, v, bias, backend)
        assert (out[[1, 4]] == 0).all() and (lse[[1, 4]] == float("-inf")).all()
        assert out.isfinite().all() and lse[[0, 2, 3]].isfinite().all()


def test_large_scores_do_not_overflow(draw: Draw) -> None:
    structure = random_graph(2, "dense").structure
    scores = 1e4 * draw(structure.num_edges, HEADS)
    weights, lse = segment_softmax(structure, scores, backend="gather")
    assert weights.isfinite().all() and lse.isfinite().all()
    torch.testing.assert_close(segment_sum(structure, weights), torch.ones(structure.num_targets, HEADS).double())
