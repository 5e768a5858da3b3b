"""Several graphs as one: side by side (ragged batch), or one above the other (heads, batch entries)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.members import Members
from graphattn.graph.token_graph import TokenGraph

__all__ = ["batch", "side_by_side", "stack", "unbatch"]


def batch(graphs: Sequence[TokenGraph]) -> TokenGraph:
    """One block-diagonal graph of several; nothing is padded and no edge joins two members.

    Args:
        graphs: One graph or more, on one device, without leading dimensions. A graph that is a batch itself
            brings its own members.

    Returns:
        A graph whose tokens and whose edges (in the caller's order) are those of the graphs one after another,
        as in PyG; members marked by ``target_ptr`` and ``source_ptr``.
    """
    graphs = _check_list(graphs, "batch")
    for index, graph in enumerate(graphs):
        if graph.leading:
            raise ArgumentError(
                f"batch needs graphs without leading dimensions, got {list(graph.leading)} in graph {index}; "
                "batch the graphs of each head, then stack"
            )
    targets = [graph.num_targets for graph in graphs]
    sources = [graph.num_sources for graph in graphs]
    target_ptr = _member_ptr([graph.target_ptr for graph in graphs], targets, graphs[0].device)
    if all(graph.is_square and graph.source_ptr is graph.target_ptr for graph in graphs):
        source_ptr = target_ptr
    else:
        source_ptr = _member_ptr([graph.source_ptr for graph in graphs], sources, graphs[0].device)

    from graphattn.graph.rules import Blocks, Complete

    if all(isinstance(graph, (Blocks, Complete)) for graph in graphs):
        num_edges = sum(graph.num_edges for graph in graphs)
        return Blocks(target_ptr, source_ptr, sum(targets), sum(sources), num_edges)
    return TokenGraph(
        _concatenate(graphs),
        num_targets=sum(targets),
        num_sources=sum(sources),
        target_ptr=target_ptr,
        source_ptr=source_ptr,
        known_causal=all(graph.known_causal and graph.is_square for graph in graphs),
    )


def unbatch(graph: TokenGraph) -> list[TokenGraph]:
    """The members of a ragged batch, each with its own numbering; edges keep the order of the batch.

    Raises:
        ArgumentError: If an edge joins two members.
    """
    if graph.leading:
        raise ArgumentError(f"unbatch needs a graph without leading dimensions, got {list(graph.leading)}")
    if graph.target_ptr is None or graph.source_ptr is None:
        return [graph]
    target_member, source_member = graph.target_batch[graph.row], graph.source_batch[graph.col]
    if not torch.equal(target_member, source_member):
        raise ArgumentError("unbatch needs a block-diagonal graph, but some edge joins two members")
    rowptr, col, edge_id = graph.csr
    col = col - graph.source_ptr.to(col.dtype)[source_member]
    begin = rowptr[graph.target_ptr.long()]
    if edge_id is not None:
        # Bring the edges of each member together, in the batch's order, and count from its first.
        in_order = torch.empty_like(target_member).index_copy_(0, edge_id.long(), target_member)
        together = in_order.argsort(stable=True)
        place = torch.empty_like(together).index_copy_(0, together, torch.arange(len(together), device=col.device))
        edge_id = place.to(edge_id.dtype)[edge_id] - begin[target_member]
    targets, sources, begins = graph.target_ptr.tolist(), graph.source_ptr.tolist(), begin.tolist()
    members = []
    for index in range(graph.num_members):
        edges = slice(begins[index], begins[index + 1])
        csr = Csr(
            rowptr[targets[index] : targets[index + 1] + 1] - begins[index],
            col[edges],
            None if edge_id is None else edge_id[edges],
        )
        members.append(
            TokenGraph(
                csr,
                num_targets=targets[index + 1] - targets[index],
                num_sources=sources[index + 1] - sources[index],
            )
        )
    return members


def stack(graphs: Sequence[TokenGraph], axis: Literal["h", "b"]) -> TokenGraph:
    """A graph with a leading dimension: a different graph for each head or batch entry.

    Args:
        graphs: One graph or more, on one device and of one size (tokens and members; edges may differ).
        axis: ``"h"``: one graph for each head. ``"b"``: one for each batch entry, each of which may hold one for
            each head already.

    Returns:
        A graph with leading dimensions ``(H,)``, ``(B,)`` or ``(B, H)``; edges in the caller's order are those of
        the graphs one after another.
    """
    name = "per_head" if axis == "h" else "stack"
    graphs = _check_list(graphs, name)
    first = graphs[0]
    inner = first.leading_axes
    if "b" in inner or (axis == "h" and inner):
        allowed = "no leading dimensions" if axis == "h" else "no leading dimensions, or one of heads"
        raise ArgumentError(f"{name} needs graphs with {allowed}, got {list(first.leading)} ({inner!r})")
    for index, graph in enumerate(graphs[1:], start=1):
        for what, mine, other in (
            ("number of targets", first.num_targets, graph.num_targets),
            ("number of sources", first.num_sources, graph.num_sources),
            ("leading dimensions", first.leading, graph.leading),
            ("members", _as_list(first.target_ptr), _as_list(graph.target_ptr)),
            ("members", _as_list(first.source_ptr), _as_list(graph.source_ptr)),
        ):
            if mine != other:
                raise ArgumentError(
                    f"{name} needs graphs of one size, but graph 0 and graph {index} differ in {what}: "
                    f"{mine} and {other}"
                )
    return TokenGraph(
        _concatenate(graphs),
        num_targets=first.num_targets,
        num_sources=first.num_sources,
        target_ptr=first.target_ptr,
        source_ptr=first.source_ptr,
        leading=(len(graphs), *first.leading),
        leading_axes=axis + inner,
        known_causal=all(graph.known_causal for graph in graphs),
    )


def side_by_side(graph: TokenGraph) -> TokenGraph:
    """The copies of a graph with leading dimensions as the members of one graph: token ``n`` of copy ``c`` is token
    ``c N + n``, and edges keep their order. A graph without leading dimensions is returned as it is."""
    if not graph.leading:
        return graph
    targets = Members.of_targets(graph).ptr
    same = graph.is_square and graph.source_ptr is graph.target_ptr
    return TokenGraph(
        graph.csr,
        num_targets=graph.num_copies * graph.num_targets,
        num_sources=graph.num_copies * graph.num_sources,
        target_ptr=targets,
        source_ptr=targets if same else Members.of_sources(graph).ptr,
        known_causal=graph.known_causal and graph.is_square,
    )


def _concatenate(graphs: Sequence[TokenGraph]) -> Csr:
    """Rows, sources and edges of the graphs one after another, each numbered on from the last."""
    device = graphs[0].device
    rows = [graph.num_copies * graph.num_targets for graph in graphs]
    sources = [graph.num_copies * graph.num_sources for graph in graphs]
    edges = [graph.csr.col.shape[0] for graph in graphs]
    dtype = index_dtype(sum(rows), sum(sources), sum(edges))
    edge_start = _starts(edges, device, dtype)
    count = torch.tensor(edges, device=device)

    rowptr = torch.cat([graph.rowptr[:-1] for graph in graphs]).to(dtype)
    rowptr += torch.repeat_interleave(edge_start, torch.tensor(rows, device=device), output_size=sum(rows))
    rowptr = torch.cat([rowptr, torch.full((1,), sum(edges), dtype=dtype, device=device)])
    col = torch.cat([graph.col for graph in graphs]).to(dtype)
    col += torch.repeat_interleave(_starts(sources, device, dtype), count, output_size=sum(edges))
    edge_id = None
    if any(graph.edge_id is not None for graph in graphs):
        edge_id = torch.cat([_edge_id(graph) for graph in graphs]).to(dtype)
        edge_id += torch.repeat_interleave(edge_start, count, output_size=sum(edges))
    return Csr(rowptr, col, edge_id)


def _edge_id(graph: TokenGraph) -> Tensor:
    if graph.edge_id is not None:
        return graph.edge_id
    return torch.arange(graph.num_edges, device=graph.device, dtype=graph.col.dtype)


def _starts(sizes: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)][:-1], device=device, dtype=dtype)


def _member_ptr(ptrs: Sequence[Tensor | None], sizes: Sequence[int], device: torch.device) -> Tensor:
    """First token of each member; a graph that is no batch is one member."""
    if all(ptr is None for ptr in ptrs):
        return torch.tensor([0, *accumulate(sizes)], device=device)
    starts = [0, *accumulate(sizes)]
    parts = [
        torch.tensor([start], device=device) if ptr is None else ptr[:-1].long() + start
        for ptr, start in zip(ptrs, starts[:-1], strict=True)
    ]
    return torch.cat([*parts, torch.tensor([starts[-1]], device=device)])


def _check_list(graphs: Sequence[TokenGraph], name: str) -> list[TokenGraph]:
    graphs = list(graphs)
    if not graphs:
        raise ArgumentError(f"{name} needs at least one graph, got none")
    for index, graph in enumerate(graphs):
        if not isinstance(graph, TokenGraph):
            raise ArgumentTypeError(f"{name} needs token graphs, got {type(graph).__name__} at {index}")
        if graph.device != graphs[0].device:
            raise ArgumentError(
                f"{name} needs graphs on one device, but graph 0 is on {graphs[0].device} and graph {index} on "
                f"{graph.device}"
            )
    return graphs


def _as_list(ptr: Tensor | None) -> list[int] | None:
    return None if ptr is None else ptr.tolist()
