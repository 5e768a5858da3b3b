"""Stochastic block model graphs PATTERN and CLUSTER, by the published procedure.

V. P. Dwivedi et al., "Benchmarking Graph Neural Networks", JMLR 2023, section on SBM data sets; the constants
are those of the authors' generator notebooks (github graphdeeplearning/benchmarking-gnns, data/SBMs).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from graphattn.errors import ArgumentError
from graphattn.optional import require

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["Pattern", "sbm_cluster_graphs", "sbm_pattern_graphs", "sbm_patterns"]

# Sizes of a community and of a pattern: uniform on 5..34.
_SMALLEST, _LARGEST = 5, 34
_CLUSTER_COMMUNITIES, _CLUSTER_INSIDE, _CLUSTER_ACROSS = 6, 0.55, 0.25
_PATTERN_COMMUNITIES, _PATTERN_INSIDE, _PATTERN_ACROSS = 5, 0.5, 0.35
_PATTERN_DENSITY, _PATTERN_TO_BACKGROUND, _PATTERN_VOCABULARY = 0.5, 0.5, 3
# One random stream for each purpose, all from one seed.
_STREAMS = {"train": 0, "val": 1, "test": 2, "patterns": 3}


class Pattern(NamedTuple):
    """A planted subgraph, the same in every graph that holds it.

    Args:
        adjacency: bool ``[n0, n0]``, symmetric, zero diagonal.
        x: Node ids ``[n0]`` in 0..2.
    """

    adjacency: np.ndarray
    x: np.ndarray


class GraphArrays(NamedTuple):
    """``x`` ``[N]``, ``edge_index`` ``[2, E]`` in bytes (no graph has more than 204 nodes), ``y`` ``[N]``."""

    x: np.ndarray
    edge_index: np.ndarray
    y: np.ndarray


def sbm_cluster_graphs(num_graphs: int, split: str = "train", seed: int = 0, *, permute: bool = True) -> list[Data]:
    """Graphs of the CLUSTER set: six communities of 5..34 nodes, edge probability 0.55 inside, 0.25 across.

    Args:
        num_graphs: How many.
        split: ``"train"``, ``"val"`` or ``"test"``: independent random streams of the same seed.
        seed: Non-negative integer.
        permute: Number the nodes at random, as published; False keeps communities one after another.

    Returns:
        Graphs with ``x`` long ``[N]`` (r + 1 at one random node of community r, else 0), ``y`` long ``[N]``
        (the community) and ``edge_index`` ``[2, E]`` (both directions, no self-loops, sorted by target then
        source).
    """
    return [_to_data(graph) for graph in cluster_arrays(num_graphs, split, seed, permute)]


def sbm_pattern_graphs(
    num_graphs: int, split: str = "train", seed: int = 0, *, num_patterns: int = 100, permute: bool = True
) -> list[Data]:
    """Graphs of the PATTERN set: five communities and, hidden among them, one of ``num_patterns`` patterns.

    Graph i holds pattern ``i % num_patterns``; the patterns depend on the seed alone, so splits share them as
    published (100 patterns, each in 100 training, 20 validation and 20 test graphs).

    Args:
        num_graphs: How many.
        split: ``"train"``, ``"val"`` or ``"test"``: independent random streams of the same seed.
        seed: Non-negative integer.
        num_patterns: How many patterns there are.
        permute: Number the nodes at random, as published; False puts the pattern first.

    Returns:
        Graphs with ``x`` long ``[N]`` in 0..2, ``y`` long ``[N]`` (1 = pattern) and ``edge_index`` ``[2, E]``
        (both directions, no self-loops, sorted by target then source).
    """
    return [_to_data(graph) for graph in pattern_arrays(num_graphs, split, seed, num_patterns, permute)]


def sbm_patterns(num_patterns: int = 100, seed: int = 0) -> list[Pattern]:
    """The patterns that :func:`sbm_pattern_graphs` hides: 5..34 nodes, density 0.5, ids uniform on 0..2."""
    rng = _stream("patterns", seed)
    return [_draw_pattern(rng) for _ in range(_positive(num_patterns, "num_patterns"))]


def cluster_arrays(num_graphs: int, split: str, seed: int, permute: bool = True) -> Iterator[GraphArrays]:
    """The graphs of :func:`sbm_cluster_graphs` one by one as arrays."""
    rng = _stream(split, seed)
    for _ in range(_positive(num_graphs, "num_graphs")):
        yield _finish(rng, permute, *_cluster_graph(rng))


def pattern_arrays(
    num_graphs: int, split: str, seed: int, num_patterns: int, permute: bool = True
) -> Iterator[GraphArrays]:
    """The graphs of :func:`sbm_pattern_graphs` one by one as arrays."""
    rng, patterns = _stream(split, seed), sbm_patterns(num_patterns, seed)
    for index in range(_positive(num_graphs, "num_graphs")):
        yield _finish(rng, permute, *_pattern_graph(rng, patterns[index % num_patterns]))


def _draw_pattern(rng: np.random.Generator) -> Pattern:
    size = int(rng.integers(_SMALLEST, _LARGEST + 1))
    adjacency = _symmetric(rng, np.full((size, size), _PATTERN_DENSITY, dtype=np.float32))
    return Pattern(adjacency, rng.integers(_PATTERN_VOCABULARY, size=size))


def _cluster_graph(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    adjacency, y, sizes = _communities(rng, _CLUSTER_COMMUNITIES, _CLUSTER_INSIDE, _CLUSTER_ACROSS)
    x = np.zeros_like(y)
    x[np.cumsum(sizes) - sizes + rng.integers(sizes)] = np.arange(1, len(sizes) + 1)
    return adjacency, x, y


def _pattern_graph(rng: np.random.Generator, pattern: Pattern) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    background, _, _ = _communities(rng, _PATTERN_COMMUNITIES, _PATTERN_INSIDE, _PATTERN_ACROSS)
    size, total = len(pattern.x), len(pattern.x) + len(background)
    links = rng.random((size, len(background)), dtype=np.float32) < _PATTERN_TO_BACKGROUND
    adjacency = np.block([[pattern.adjacency, links], [links.T, background]])
    x = np.concatenate((pattern.x, rng.integers(_PATTERN_VOCABULARY, size=len(background))))
    return adjacency, x, (np.arange(total) < size).astype(np.int64)


def _communities(
    rng: np.random.Generator, count: int, inside: float, across: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = rng.integers(_SMALLEST, _LARGEST + 1, size=count)
    labels = np.repeat(np.arange(count), sizes)
    table = np.full((count, count), across, dtype=np.float32)
    np.fill_diagonal(table, inside)
    return _symmetric(rng, table[labels][:, labels]), labels, sizes


def _symmetric(rng: np.random.Generator, probability: np.ndarray) -> np.ndarray:
    upper = np.triu(rng.random(probability.shape, dtype=np.float32) < probability, 1)
    return upper | upper.T


def _finish(
    rng: np.random.Generator, permute: bool, adjacency: np.ndarray, x: np.ndarray, y: np.ndarray
) -> GraphArrays:
    if permute:
        order = rng.permutation(len(x))
        adjacency, x, y = adjacency[order][:, order], x[order], y[order]
    # By rows: sorted by target, then source. Much faster flat than np.nonzero in two dimensions.
    target, source = np.divmod(np.flatnonzero(adjacency).astype(np.uint16), np.uint16(len(x)))
    return GraphArrays(x, np.stack((source, target)).astype(np.uint8), y)


def _to_data(graph: GraphArrays) -> Data:
    data_class = require("torch_geometric.data", extra="pyg", purpose="an SBM graph").Data
    x, edge_index, y = (torch.from_numpy(array).long() for array in graph)
    data: Data = data_class(x=x, edge_index=edge_index, y=y)
    return data


def _stream(split: str, seed: int) -> np.random.Generator:
    if split not in _STREAMS:
        raise ArgumentError(f"split must be 'train', 'val' or 'test', got {split!r}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ArgumentError(f"seed must be a non-negative integer, got {seed!r}")
    return np.random.default_rng([int(seed), _STREAMS[split]])


def _positive(count: int, name: str) -> int:
    if not isinstance(count, int | np.integer) or count < 1:
        raise ArgumentError(f"{name} must be a positive integer, got {count!r}")
    return int(count)
