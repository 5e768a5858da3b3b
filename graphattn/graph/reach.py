"""Who is within so many hops, for many small graphs at once: dense boolean matrices, nothing waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["node_adjacency", "same_node", "tree_adjacency", "within_hops"]


def tree_adjacency(parent: Tensor) -> Tensor:
    """Trees given by parents, as symmetric matrices.

    Args:
        parent: Integer ``[..., V]``: the parent of each vertex, -1 for a root and for a vertex that is not there.

    Returns:
        Boolean ``[..., V, V]``.
    """
    vertex = torch.arange(parent.shape[-1], device=parent.device)
    up = parent.unsqueeze(-1) == vertex  # -1 is no vertex
    return up | up.mT


def same_node(node: Tensor) -> Tensor:
    """Which vertices stand for one node, boolean ``[..., V, V]``, from their nodes ``[..., V]`` (-1: not there)."""
    return (node.unsqueeze(-1) == node.unsqueeze(-2)) & (node >= 0).unsqueeze(-1)


def node_adjacency(parent: Tensor, node: Tensor) -> Tensor:
    """Trees whose vertices stand for the nodes of one graph: vertices are joined where any two that stand for the same
    nodes are.

    Args:
        parent: Integer ``[..., V]``, see :func:`tree_adjacency`.
        node: Integer ``[..., V]``: the node that each vertex stands for, -1 where there is none.

    Returns:
        Boolean ``[..., V, V]``.
    """
    same = same_node(node)
    return _product(_product(same, tree_adjacency(parent)), same)


def within_hops(adjacency: Tensor, hops: int, same: Tensor | None = None) -> Tensor:
    """Which vertices are at most so many hops apart.

    Args:
        adjacency: Boolean ``[..., V, V]``, symmetric.
        hops: 0 or more.
        same: Boolean ``[..., V, V]``: what is at distance 0; default: each vertex from itself.

    Returns:
        Boolean ``[..., V, V]``, symmetric.
    """
    size = adjacency.shape[-1]
    here = torch.eye(size, dtype=torch.bool, device=adjacency.device).expand(adjacency.shape)
    reached = here if same is None else here | same
    step = adjacency | reached
    hops = min(hops, size)  # no shortest path is longer
    while hops:
        if hops & 1:
            reached = _product(reached, step)
        hops >>= 1
        if hops:
            step = _product(step, step)
    return reached


def _product(first: Tensor, second: Tensor) -> Tensor:
    """The boolean product: whether some vertex lies between."""
    return first.float() @ second.float() > 0
