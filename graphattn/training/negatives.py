"""Pairs of nodes that are no edges, drawn on the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["edge_keys", "sample_negatives"]

_REDRAWS = 4


def edge_keys(edge_index: Tensor, num_nodes: int) -> Tensor:
    """A number for each edge, sorted: int64 ``[E]``."""
    return (edge_index[0] * num_nodes + edge_index[1]).sort().values


def sample_negatives(sources: Tensor | None, count: int, num_nodes: int, keys: Tensor) -> Tensor:
    """Draw pairs that are no edges, uniformly.

    A pair that is an edge, or a node and itself, is drawn again, at most four times, so that nothing waits for the
    device: in a graph with a share ``d`` of all pairs, ``d ** 5`` of the result are edges.

    Args:
        sources: int64 ``[count]`` given sources, whose targets are drawn; ``None``: both ends are drawn.
        count: Number of pairs.
        num_nodes: Number of nodes.
        keys: From :func:`edge_keys`, at least one.

    Returns:
        int64 ``[2, count]``.
    """

    def draw() -> Tensor:
        pairs = torch.randint(num_nodes, (2, count), device=keys.device)
        return pairs if sources is None else torch.stack((sources, pairs[1]))

    pairs = draw()
    for _ in range(_REDRAWS):
        wanted = pairs[0] * num_nodes + pairs[1]
        place = torch.searchsorted(keys, wanted).clamp(max=keys.numel() - 1)
        bad = (keys[place] == wanted) | (pairs[0] == pairs[1])
        pairs = torch.where(bad, draw(), pairs)
    return pairs
