"""Graphs from lists of edges."""

from __future__ import annotations

from torch import Tensor

from graphattn.graph import check
from graphattn.graph.csr import Csr, sort_by_target
from graphattn.graph.token_graph import TokenGraph

__all__ = ["from_csr", "from_edge_index"]


def from_edge_index(
    edge_index: Tensor,
    sizes: tuple[int | None, int | None, int | None],
    ptrs: tuple[Tensor | None, Tensor | None, Tensor | None],
    validate: bool,
) -> TokenGraph:
    """See :meth:`TokenGraph.from_edge_index`.

    Args:
        edge_index: ``[2, E]``.
        sizes: Tokens; targets and sources instead.
        ptrs: First token of each member; first target and first source instead.
        validate: Check everything.
    """
    num_targets, num_sources = check.resolve_sizes(edge_index, *sizes, ptrs[0])
    target_ptr, source_ptr = check.resolve_ptrs(*ptrs)
    if validate:
        check.check_edge_index(edge_index, num_targets, num_sources)
        check.check_ptrs(target_ptr, source_ptr, num_targets, num_sources, edge_index.device)
        check.check_members(edge_index, target_ptr, source_ptr)
    source, target = edge_index[0].long(), edge_index[1].long()
    return TokenGraph(
        sort_by_target(source, target, num_targets, num_sources),
        num_targets=num_targets,
        num_sources=num_sources,
        target_ptr=target_ptr,
        source_ptr=source_ptr,
    )


def from_csr(
    rowptr: Tensor,
    col: Tensor,
    num_sources: int | None,
    ptrs: tuple[Tensor | None, Tensor | None],
    validate: bool,
) -> TokenGraph:
    """See :meth:`TokenGraph.from_csr`; ``ptrs``: first target and first source of each member."""
    num_targets = check.num_rows(rowptr)
    num_sources = num_targets if num_sources is None else num_sources
    target_ptr, source_ptr = check.resolve_ptrs(None, *ptrs)
    graph = TokenGraph(
        Csr(rowptr, col, None),
        num_targets=num_targets,
        num_sources=num_sources,
        target_ptr=target_ptr,
        source_ptr=source_ptr,
    )
    if validate:
        check.check_csr(rowptr, col, num_sources)
        check.check_ptrs(target_ptr, source_ptr, num_targets, num_sources, col.device)
        if target_ptr is not None:
            check.check_members(graph.edge_index, target_ptr, source_ptr)
    return graph
