"""What networks do with their inputs before anything is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, patterns
from graphattn.graph.convert import as_token_graph

__all__ = ["complete_graphs", "local_graph", "member_ptr", "needed"]


def needed(name: str, value: Tensor | None, rows: int) -> Tensor:
    """The value, if it is there and has ``rows`` rows.

    Raises:
        ArgumentError: Otherwise.
    """
    if value is None:
        raise ArgumentError(f"{name} is needed by this model and was not given")
    if value.shape[0] != rows:
        what = "edge" if name == "edge_attr" else "node"
        raise ArgumentError(f"{name} must have one row for each {what}, {rows}, got shape {list(value.shape)}")
    return value


def local_graph(edge_index: Any, x: Tensor, ptr: Tensor | None) -> TokenGraph:
    """The graph of the given edges; checked on the CPU only, so that nothing waits for a device."""
    count = x.shape[0]
    on_host = not (x.is_cuda or torch.compiler.is_compiling())
    return as_token_graph(edge_index, num_targets=count, num_sources=count, ptr=ptr, validate=on_host)


def complete_graphs(x: Tensor, ptr: Tensor | None, num_pairs: int | None) -> TokenGraph:
    """Every node reads every node of its own graph.

    Args:
        x: Rows of nodes, ``[N, C]``.
        ptr: ``[B + 1]`` first node of each graph; ``None``: all nodes are one graph.
        num_pairs: Sum over graphs of the squared number of nodes; ``None``: looked up where it is needed.
    """
    if ptr is None:
        return patterns.complete(x.shape[0], device=x.device)
    on_host = not (x.is_cuda or torch.compiler.is_compiling())
    return patterns.blocks(ptr, num_tokens=x.shape[0], num_edges=num_pairs, validate=on_host)


def member_ptr(batch: Tensor | None, num_graphs: int | None) -> Tensor | None:
    """``[B + 1]`` first node of each graph, from PyG's ``batch``; waits for the device where ``num_graphs`` is
    unknown."""
    if batch is None:
        return None
    if num_graphs is None:
        num_graphs = int(batch[-1]) + 1 if batch.numel() else 0
    return torch.searchsorted(batch.contiguous(), torch.arange(num_graphs + 1, device=batch.device))
