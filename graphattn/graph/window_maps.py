"""What the arguments of a graph window must be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_maps"]


def check_maps(
    node_of_token: Tensor,
    parent: Tensor,
    hops: int | None,
    direction: str,
    distance: str,
    node: Tensor | None,
    adjacency: Tensor | None,
    mask: Tensor | None,
) -> bool:
    """Whether the prompts are a batch; arguments of :func:`~graphattn.graph.graph_window`.

    Raises:
        ArgumentTypeError: If a tensor has the wrong dtype.
        ArgumentError: If shapes or values do not fit; values on a GPU are not looked at.
    """
    if direction not in ("uni", "bidi"):
        raise ArgumentError(f"direction must be 'uni' or 'bidi', got {direction!r}")
    if distance not in ("occurrence", "node"):
        raise ArgumentError(f"distance must be 'occurrence' or 'node', got {distance!r}")
    if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int) or hops < 0):
        raise ArgumentError(f"hops must be an int of 0 or more, or None for no bound, got {hops!r}")
    if distance == "node" and node is None:
        raise ArgumentError("distance='node' needs node, the node of the graph that each vertex stands for")
    for name, x in (("node_of_token", node_of_token), ("parent", parent), ("node", node)):
        _need(name, x, integer=True)
    for name, x in (("adjacency", adjacency), ("mask", mask)):
        _need(name, x, integer=False)
    if node_of_token.dim() not in (1, 2):
        raise ArgumentError(f"node_of_token must be [T] or [B, T], got {list(node_of_token.shape)}")
    batch, tokens = tuple(node_of_token.shape[:-1]), node_of_token.shape[-1]
    vertices = parent.shape[-1] if parent.dim() else 0
    _shape("parent", parent, (*batch, vertices))
    _shape("node", node, (*batch, vertices))
    _shape("adjacency", adjacency, (*batch, vertices, vertices))
    _shape("mask", mask, (*batch, tokens))
    for name, x in (("parent", parent), ("node", node), ("adjacency", adjacency), ("mask", mask)):
        if x is not None and x.device != node_of_token.device:
            raise ArgumentError(
                f"{name} must be on the device of node_of_token, {node_of_token.device}, got {x.device}"
            )
    if node_of_token.device.type == "cpu" and not torch.compiler.is_compiling():  # free to look
        for name, x in (("node_of_token", node_of_token), ("parent", parent)):
            if x.numel() and not -1 <= int(x.min()) <= int(x.max()) < vertices:
                raise ArgumentError(
                    f"{name} must be -1 to {vertices - 1} for the {vertices} vertices of parent, got values from "
                    f"{int(x.min())} to {int(x.max())}"
                )
    return len(batch) == 1


def _need(name: str, x: Tensor | None, *, integer: bool) -> None:
    if x is None:
        return
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8) if integer else (torch.bool,)
    if not isinstance(x, Tensor) or x.dtype not in kinds:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(f"{name} must be {'an integer' if integer else 'a boolean'} tensor, got {got}")


def _shape(name: str, x: Tensor | None, wanted: Sequence[int]) -> None:
    if x is not None and tuple(x.shape) != tuple(wanted):
        raise ArgumentError(f"{name} must be {list(wanted)} to fit node_of_token and parent, got {list(x.shape)}")
