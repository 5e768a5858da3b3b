"""Exphormer's graph: the given edges, an expander and hubs, with the kind of each edge."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.csr import batch_vector
from graphattn.graph.random_graphs import expander
from graphattn.graph.token_graph import TokenGraph

__all__ = ["ExphormerGraph", "exphormer", "expander_edges"]

_CACHED_SIZE = 4096  # tokens of an expander that is remembered


class ExphormerGraph(NamedTuple):
    """What :func:`exphormer` returns."""

    graph: TokenGraph
    """Over nodes and hubs; each member holds its nodes, then its hubs."""
    edge_type: Tensor
    """int64 ``[E']``, in the caller's edge order: 0 a given edge (these come first, in their order), 1 an expander
    edge, ``2 + k`` from a node to hub k, ``2 + hubs + k`` from hub k to a node."""
    node: Tensor
    """int64 ``[N]``: the token of each node."""
    hub: Tensor
    """int64 ``[B, hubs]``: the token of each member's hubs."""

    @property
    def num_edge_types(self) -> int:
        """How many kinds of edges there may be."""
        return 2 + 2 * self.hub.shape[1]

    def join(self, nodes: Tensor, hubs: Tensor) -> Tensor:
        """Token rows ``[tokens, C]`` from the rows of nodes ``[N, C]`` and of hubs ``[hubs, C]``, the same in each
        member."""
        rows = torch.cat([nodes, hubs.to(nodes.dtype).repeat(self.hub.shape[0], 1)])
        place = torch.cat([self.node, self.hub.flatten()])
        given = torch.empty_like(place).index_copy_(0, place, torch.arange(place.shape[0], device=place.device))
        return rows.index_select(0, given)

    def nodes(self, rows: Tensor) -> Tensor:
        """The rows of nodes ``[N, C]`` among token rows."""
        return rows.index_select(0, self.node)


def exphormer(
    graph: TokenGraph,
    *,
    degree: int = 4,
    hubs: int = 1,
    seed: int = 0,
    expander: Tensor | None = None,
) -> ExphormerGraph:
    """The graph of Exphormer, ``graph | expander | hubs`` in each member of a batch (Shirzad et al., "Exphormer: Sparse
    Transformers for Graphs", arXiv 2303.06147).

    Every kind of edge keeps edges of its own, so that each can have its own learned rows: an expander edge beside a
    given one is a second edge. Hubs are new tokens (virtual nodes) that read all nodes of their member and are read by
    them; hubs do not read each other.

    Args:
        graph: A square graph, one or a ragged batch, without leading dimensions.
        degree: Of the expander, see :func:`graphattn.graph.expander`; 0: none.
        hubs: Hubs of each member; 0: none.
        seed: Of the expander, which depends on nothing but this and the member's size: a member has the same edges in
            every batch.
        expander: int64 ``[2, X]`` expander edges made before (:func:`expander_edges`); ``degree`` and ``seed`` then say
            nothing, and nothing waits for the device.

    Returns:
        The graph, the kind of each edge, and where nodes and hubs stand.

    Raises:
        ArgumentError: If the graph is bipartite or has leading dimensions, or a number is out of range.
    """
    if graph.leading or not graph.is_square:
        raise ArgumentError(f"exphormer needs a square graph without leading dimensions, got {graph!r}")
    if hubs < 0:
        raise ArgumentError(f"hubs must be 0 or more, got {hubs}")
    device, count = graph.device, graph.num_tokens
    if expander is None:
        expander = expander_edges(graph, degree, seed)
    elif not isinstance(expander, Tensor) or expander.dim() != 2 or expander.shape[0] != 2:
        got = list(expander.shape) if isinstance(expander, Tensor) else type(expander).__name__
        raise ArgumentTypeError(f"expander must be an edge_index [2, X], got {got}")

    ptr = graph.target_ptr
    ptr = torch.tensor([0, count], device=device) if ptr is None else ptr.long()
    members = torch.arange(ptr.shape[0], device=device)
    member = batch_vector(ptr, count, device)
    token_ptr = ptr + hubs * members
    node = torch.arange(count, device=device) + hubs * member
    hub = token_ptr[1:, None] - hubs + torch.arange(hubs, device=device)

    hub_of_node = hub.index_select(0, member).flatten()  # node after node, each with its hubs
    each = node.repeat_interleave(hubs)
    given = graph.edge_index
    to_hub, from_hub = torch.stack([each, hub_of_node]), torch.stack([hub_of_node, each])
    edge_index = torch.cat([node[given], node[expander], to_hub, from_hub], dim=1)
    kind = torch.arange(hubs, device=device).repeat(count)
    edge_type = torch.cat(
        [
            torch.zeros(given.shape[1], dtype=torch.int64, device=device),
            torch.ones(expander.shape[1], dtype=torch.int64, device=device),
            2 + kind,
            2 + hubs + kind,
        ]
    )
    whole = TokenGraph.from_edge_index(
        edge_index,
        count + hubs * (ptr.shape[0] - 1),
        ptr=None if graph.target_ptr is None else token_ptr,
        validate=False,
    )
    return ExphormerGraph(whole, edge_type, node, hub)


def expander_edges(graph: TokenGraph, degree: int, seed: int = 0) -> Tensor:
    """An expander over the tokens of each member of a batch.

    Args:
        graph: A square graph, whose members count and whose edges do not.
        degree: See :func:`graphattn.graph.expander`; 0: none.
        seed: With a member's size, it decides the member's edges.

    Returns:
        int64 ``[2, X]`` on the graph's device.
    """
    sizes = [graph.num_tokens] if graph.target_ptr is None else graph.target_ptr.diff().tolist()
    if degree == 0 or not sizes:
        return torch.zeros(2, 0, dtype=torch.int64, device=graph.device)
    parts = [_edges(size, degree, seed) for size in sizes]
    counts, sizes_ = torch.tensor([part.shape[1] for part in parts]), torch.tensor(sizes)
    first = (sizes_.cumsum(0) - sizes_).repeat_interleave(counts)
    return (torch.cat(parts, dim=1) + first).to(graph.device)


def _edges(size: int, degree: int, seed: int) -> Tensor:
    return _remembered(size, degree, seed) if size <= _CACHED_SIZE else _made(size, degree, seed)


def _made(size: int, degree: int, seed: int) -> Tensor:
    return expander(size, degree, torch.Generator().manual_seed(seed), device="cpu").edge_index


_remembered = lru_cache(maxsize=4096)(_made)
