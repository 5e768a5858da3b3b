"""Token graphs from and to ``DGLGraph``: the one module that knows how DGL stores a graph.

DGL is told by the looks of its graphs and imported only to make one.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import check
from graphattn.graph.csr import Csr, rows
from graphattn.graph.token_graph import TokenGraph
from graphattn.optional import require

__all__ = ["from_dgl", "is_dgl_graph", "load_dgl", "to_dgl"]


def is_dgl_graph(value: Any) -> bool:
    """Whether this looks like a ``DGLGraph``, blocks included."""
    return hasattr(value, "canonical_etypes") and hasattr(value, "adj_tensors")


def load_dgl() -> ModuleType:
    """DGL, imported without what it does at its first import: write into the home folder, and print."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    return require("dgl", extra="dgl")


def from_dgl(graph: Any, edge_type: Any = None, *, members: bool = True) -> TokenGraph:
    """The graph of one edge type of a ``DGLGraph`` (plain, bipartite, block, batch, heterogeneous).

    Edge tensors are in the order of DGL's edge ids. DGL's CSC is taken as it is, without a copy, where DGL has built
    it and the sources of each target ascend in it; otherwise the edges are sorted once. A batch keeps its members.

    Args:
        graph: The graph. All types at once: ``from_dgl(dgl.to_homogeneous(graph))``.
        edge_type: Which edge type, as a name or a triplet; needed where there are several. Taken from here, the
            members of a heterogeneous batch are kept, which DGL's own ``graph[edge_type]`` forgets.
        members: Mark the members of a batch.

    Raises:
        ArgumentTypeError: If it is no ``DGLGraph``.
        ArgumentError: If there are several edge types and none was named, or no such type.
    """
    if not is_dgl_graph(graph):
        raise ArgumentTypeError(f"graph must be a DGLGraph, got {type(graph).__name__}")
    relation = _relation(graph, edge_type)
    source_type, _, target_type = relation.canonical_etypes[0]
    # By name: in a graph with further, isolated node types the numbers without one count those, too.
    num_sources, num_targets = relation.num_src_nodes(source_type), relation.num_dst_nodes(target_type)
    target_ptr = source_ptr = None
    if members and graph.batch_size > 1:
        target_ptr = _ptr_from_sizes(graph.batch_num_nodes(target_type).long())
        source_ptr = target_ptr
        if source_type != target_type:
            source_ptr = _ptr_from_sizes(graph.batch_num_nodes(source_type).long())
    sizes: dict[str, Any] = {"num_targets": num_targets, "num_sources": num_sources}
    sizes |= {"target_ptr": target_ptr, "source_ptr": source_ptr}
    csr = _by_target(relation)
    if csr is None:
        return TokenGraph.from_edge_index(_edge_index(relation), **sizes)
    result = TokenGraph(csr, **sizes)
    edges = torch.stack([csr.col, result.row])
    check.check_edge_index(
        edges, num_targets, num_sources
    )  # a block whose targets are not all among its nodes has -1 for them
    check.check_ptrs(target_ptr, source_ptr, num_targets, num_sources, result.device)
    check.check_members(edges, target_ptr, source_ptr)
    return result


def to_dgl(graph: TokenGraph, idtype: torch.dtype = torch.int64) -> Any:
    """A ``DGLGraph``, edges in the caller's order; a bipartite graph gets the node types source and target.

    DGL is given the edges as they are sorted here, so that it need not sort them again.

    Args:
        graph: Without leading dimensions. The edges of a batch must stand member by member, as DGL keeps them.
        idtype: int64, or int32 (shared with ``graph`` where its own indices are).

    Raises:
        ArgumentError: If the graph has leading dimensions or its edges stand in another order.
        MissingPackageError: If DGL cannot be imported.
    """
    dgl = load_dgl()
    if graph.leading:
        raise ArgumentError(f"to_dgl needs a graph without leading dimensions, got {list(graph.leading)}")
    if idtype not in (torch.int64, torch.int32):
        raise ArgumentError(f"idtype must be torch.int64 or torch.int32, got {idtype}")
    edge_id = graph.col.new_empty(0) if graph.edge_id is None else graph.edge_id  # empty: in this order
    csc = ("csc", tuple(array.to(idtype) for array in (graph.rowptr, graph.col, edge_id)))
    if _is_plain(graph):
        out = dgl.graph(csc, num_nodes=graph.num_targets, device=graph.device)
    else:
        sizes = {"source": graph.num_sources, "target": graph.num_targets}
        out = dgl.heterograph({("source", "to", "target"): csc}, sizes, device=graph.device)
    if graph.target_ptr is not None and graph.source_ptr is not None:
        member = graph.target_batch[graph.edge_index[1]]
        if bool((member.diff() < 0).any()):
            raise ArgumentError("to_dgl needs the edges of a batch member by member, in the order of the members")
        nodes: Any = graph.target_ptr.diff().to(idtype)
        if len(out.ntypes) > 1:
            nodes = {"source": graph.source_ptr.diff().to(idtype), "target": nodes}
        out.set_batch_num_nodes(nodes)
        out.set_batch_num_edges(torch.bincount(member, minlength=graph.num_members).to(idtype))
    return out


def _relation(graph: Any, edge_type: Any) -> Any:
    """The part of the graph that has one edge type."""
    known = graph.canonical_etypes
    if edge_type is None:
        if len(known) != 1:
            raise ArgumentError(
                f"a DGLGraph must have one edge type, got {len(known)}; give edge_type, one of {known}, or all of them "
                "as dgl.to_homogeneous(graph)"
            )
        return graph
    found = [triplet for triplet in known if edge_type in (triplet, triplet[1])]
    if len(found) != 1:
        raise ArgumentError(
            f"edge_type must be one of {known}, or its middle name if that is unique, got {edge_type!r}"
        )
    return graph if len(known) == 1 else graph[found[0]]


def _by_target(relation: Any) -> Csr | None:
    """DGL's CSC, if it has one that is sorted as ours is."""
    if "csc" not in relation.formats()["created"]:
        return None
    csr = _compressed(relation, "csc")
    if not check.rows_ascend(csr.rowptr, csr.col):
        return None
    if csr.edge_id is not None:
        target = rows(csr)
        same = (csr.col[1:] == csr.col[:-1]) & (target[1:] == target[:-1])
        if bool((same & (csr.edge_id[1:] < csr.edge_id[:-1])).any()):
            return None  # duplicates keep the caller's order
    return csr


def _edge_index(relation: Any) -> Tensor:
    """``[2, E]`` by edge id; DGL gives it only where it may hold the edges as a list."""
    formats = relation.formats()
    if "coo" in formats["created"] + formats["not created"]:
        return torch.stack(relation.edges(order="eid"))
    by_target = "csc" in formats["created"] + formats["not created"]
    csr = _compressed(relation, "csc" if by_target else "csr")
    edges = torch.stack([csr.col, rows(csr)] if by_target else [rows(csr), csr.col])
    return edges if csr.edge_id is None else torch.empty_like(edges).index_copy_(1, csr.edge_id.long(), edges)


def _compressed(relation: Any, form: str) -> Csr:
    ptr, index, edge_id = relation.adj_tensors(form)
    return Csr(ptr, index, edge_id if edge_id.numel() else None)  # none: they stand in the order of their ids


def _is_plain(graph: TokenGraph) -> bool:
    """Whether targets and sources are the same tokens, as far as one can tell."""
    if not graph.is_square:
        return False
    target_ptr, source_ptr = graph.target_ptr, graph.source_ptr
    return target_ptr is source_ptr or (
        target_ptr is not None and source_ptr is not None and torch.equal(target_ptr, source_ptr)
    )


def _ptr_from_sizes(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
