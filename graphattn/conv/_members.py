"""Members of a batch, as PyG tells them: by the graph of each node."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.conv._remembered import remembered
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.check import check_members

__all__ = ["with_members"]


def with_members(graph: TokenGraph, batch: Tensor | tuple[Tensor, Tensor]) -> TokenGraph:
    """The graph with its members marked; waits for the device, once for all calls with these objects."""
    if graph.target_ptr is not None:
        raise ArgumentError("batch must be None for a TokenGraph that knows its members, got a tensor")
    pair = tuple(batch) if isinstance(batch, (tuple, list)) else (batch, batch)
    if len(pair) != 2 or not all(isinstance(x, Tensor) and x.dtype == torch.int64 for x in pair):
        raise ArgumentTypeError("batch must be an int64 tensor [N], or a pair for sources and targets")
    for name, x, size in zip(("sources", "targets"), pair, (graph.num_sources, graph.num_targets), strict=True):
        if x.shape != (size,):
            raise ArgumentError(f"batch must have an entry for each of {size} {name}, got {list(x.shape)}")

    def make() -> TokenGraph:
        if any(bool((x.diff() < 0).any()) for x in pair):
            raise ArgumentError("batch must ascend (PyG's batches do); sort the nodes by their graph first")
        count = max((int(x[-1]) + 1 for x in pair if x.numel()), default=1)
        every = torch.arange(count + 1, device=graph.device)
        source_ptr, target_ptr = (torch.searchsorted(x.contiguous(), every) for x in pair)
        if pair[0] is pair[1]:
            source_ptr = target_ptr
        check_members(graph.edge_index, target_ptr, source_ptr)
        return TokenGraph(
            graph.csr,
            num_targets=graph.num_targets,
            num_sources=graph.num_sources,
            target_ptr=target_ptr,
            source_ptr=source_ptr,
        )

    return remembered((graph, *pair), ("members",), make)
