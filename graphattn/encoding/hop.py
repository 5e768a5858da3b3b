"""Hop distance: how many edges lie between two tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse.csgraph
import torch
from torch import Tensor

from graphattn.encoding._structure import (
    CsrMatrix,
    adjacency,
    check_count,
    check_graph,
    diagonal_block,
    member_ptr,
)
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

__all__ = ["HopPairs", "hop_distance", "hop_pairs"]

_CHUNK_NUMBERS = 1 << 22  # distances held at a time where not all are kept


class HopPairs(NamedTuple):
    """Pairs of tokens and their distances, an edge list with a feature."""

    edge_index: Tensor
    """int64 ``[2, P]`` sources and targets, by target and then source (the order of the pattern that is
    complete inside each member)."""
    distance: Tensor
    """int64 ``[P]``."""


def hop_distance(graph: TokenGraph, max_distance: int) -> Tensor:
    """Number of edges on the shortest way from source to target, for all pairs of one graph.

    `"Do Transformers Really Perform Bad for Graph Representation?" <https://arxiv.org/abs/2106.05234>`_ looks
    up a bias by it. Ways follow the edges' direction.

    Args:
        graph: Square graph of ``N`` tokens, one member.
        max_distance: Distances are exact up to this one.

    Returns:
        int64 ``[N, N]``, a row a target and a column a source: 0 on the diagonal, ``max_distance + 1`` where
        the distance is larger or there is no way.

    Raises:
        ArgumentTypeError: If an argument has the wrong type.
        ArgumentError: If ``max_distance < 1``, the graph is a batch, bipartite or has leading dimensions.
    """
    check_graph(graph)
    check_count("max_distance", max_distance)
    if graph.num_members != 1:
        raise ArgumentError(
            f"graph must have one member for a matrix of distances, got {graph.num_members}; use hop_pairs"
        )
    return torch.from_numpy(_distances(adjacency(graph), max_distance)).to(graph.device)


def hop_pairs(graph: TokenGraph, max_distance: int, *, reachable_only: bool = False) -> HopPairs:
    """Hop distances inside each member of a batch as an edge list.

    Args:
        graph: Square graph of ``N`` tokens, one or a batch.
        max_distance: Distances are exact up to this one.
        reachable_only: List only the pairs at most ``max_distance`` apart (the graph of at most that many
            hops), and not every pair of a member.

    Returns:
        :class:`HopPairs`: each token with itself (distance 0) and with every other of its member; the
        distance is ``max_distance + 1`` where it is larger or there is no way.

    Raises:
        ArgumentTypeError: If an argument has the wrong type.
        ArgumentError: If ``max_distance < 1``, or the graph is bipartite or has leading dimensions.
    """
    check_graph(graph)
    check_count("max_distance", max_distance)
    matrix, ptr = adjacency(graph), member_ptr(graph)
    empty = np.zeros(0, dtype=np.int64)
    sources, targets, distances = [empty], [empty], [empty]
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        block = diagonal_block(matrix, start, stop)
        rows = max(1, _CHUNK_NUMBERS // max(1, stop - start))
        for first in range(0, stop - start, rows):
            found = _distances(block, max_distance, np.arange(first, min(first + rows, stop - start)))
            keep = found <= max_distance if reachable_only else np.ones_like(found, dtype=bool)
            target, source = keep.nonzero()
            sources.append(source + start)
            targets.append(target + first + start)
            distances.append(found[keep])
    edge_index = np.stack([np.concatenate(sources), np.concatenate(targets)])
    return HopPairs(
        torch.from_numpy(edge_index).to(graph.device),
        torch.from_numpy(np.concatenate(distances)).to(graph.device),
    )


def _distances(matrix: CsrMatrix, max_distance: int, targets: np.ndarray | None = None) -> np.ndarray:
    """int64 ``[targets, n]``; rows of ``matrix`` are targets, so ways are searched backwards."""
    if matrix.shape[0] == 0:
        return np.zeros((0, 0), dtype=np.int64)
    found = scipy.sparse.csgraph.dijkstra(matrix, unweighted=True, indices=targets, limit=max_distance)
    return np.minimum(found, max_distance + 1).astype(np.int64)
