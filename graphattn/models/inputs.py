"""What networks do with their inputs before anything is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn.graph import TokenGraph, patterns
from graphattn.graph.convert import as_token_graph
from graphattn.graph.csr import batch_ptr
from graphattn.graph.edges import in_members
from graphattn.nn.pool import check_batch

__all__ = ["batch_graph", "complete_graphs", "local_graph", "member_ptr"]


def local_graph(edge_index: Any, x: Tensor, ptr: Tensor | None) -> TokenGraph:
    """The graph of the given edges; checked on the CPU only, so that nothing waits for a device."""
    count = x.shape[0]
    on_host = not (x.is_cuda or torch.compiler.is_compiling())
    return as_token_graph(edge_index, num_targets=count, num_sources=count, ptr=ptr, validate=on_host)


def batch_graph(edge_index: Any, x: Tensor, ptr: Tensor | None) -> TokenGraph:
    """The graph of the given edges, checked, in members; that these are the edges' is checked on the CPU only."""
    count, on_host = x.shape[0], not x.is_cuda
    graph = as_token_graph(edge_index, num_targets=count, num_sources=count, ptr=ptr if on_host else None)
    if on_host or ptr is None or graph is edge_index or graph.target_ptr is not None:
        return graph
    return in_members(graph, ptr, ptr)


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


def member_ptr(batch: Tensor | None, num_nodes: int, num_graphs: int | None) -> Tensor | None:
    """``[B + 1]`` first node of each graph, from PyG's ``batch``; waits for the device where ``num_graphs`` is
    unknown."""
    if batch is None:
        return None
    check_batch(batch, num_nodes, num_graphs)
    return batch_ptr(batch, num_graphs)
