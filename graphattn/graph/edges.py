"""Graphs from lists of edges."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from graphattn.graph import check
from graphattn.graph.csr import Csc, Csr, index_dtype, sort_by_target
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels._library import is_plain
from graphattn_kernels._schedule import as_they_stand

__all__ = ["from_csr", "from_edge_index", "sorted_at_once"]

_HAS_TRITON = find_spec("triton") is not None


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
    target_ptr, source_ptr = check.resolve_ptrs(*ptrs)
    num_targets, num_sources = check.resolve_sizes(edge_index, *sizes, target_ptr, source_ptr)
    at_once = None
    if validate and edge_index.is_cuda and _HAS_TRITON and not check.waits_for_nothing(edge_index.device):
        at_once = sorted_at_once(edge_index, num_targets, num_sources)
    if validate:
        if at_once is None:
            check.check_edge_index(edge_index, num_targets, num_sources)
        check.check_ptrs(target_ptr, source_ptr, num_targets, num_sources, edge_index.device)
        check.check_members(edge_index, target_ptr, source_ptr)
    if at_once is not None:
        at_once._target_ptr, at_once._source_ptr = target_ptr, None if source_ptr is target_ptr else source_ptr
        return at_once
    source, target = edge_index[0].long(), edge_index[1].long()
    return TokenGraph(
        sort_by_target(source, target, num_targets, num_sources),
        num_targets=num_targets,
        num_sources=num_sources,
        target_ptr=target_ptr,
        source_ptr=source_ptr,
    )


def in_members(graph: TokenGraph, target_ptr: Tensor, source_ptr: Tensor) -> TokenGraph:
    """The edges of a graph, sorted as they are, in a batch with these members; nothing is checked."""
    marked = TokenGraph(
        graph.csr,
        num_targets=graph.num_targets,
        num_sources=graph.num_sources,
        target_ptr=target_ptr,
        source_ptr=source_ptr,
    )
    marked._csc = graph._csc
    return marked


def sorted_at_once(edge_index: Tensor, num_targets: int, num_sources: int) -> TokenGraph | None:
    """A checked graph with both of its sorted views, made in a few launches: in training on batches of small graphs,
    everything else would take longer than attention. ``None``: without edges, there is nothing to sort; and kernels
    read plain memory, which tensors of a special kind (PyG's ``EdgeIndex``, fakes, those of torch.func) have not.

    The values are checked by the pass that reads them, and looked at when all else has been launched: the wait for the
    device is the last thing, and is also told whether rows are short enough to need no schedule.

    Args:
        edge_index: ``[2, E]``, whose form has been checked, on CUDA (or Triton is interpreted).
        num_targets: T.
        num_sources: S.

    Raises:
        ArgumentError: If an index is out of range.
    """
    num_edges = edge_index.shape[1]
    if num_edges == 0 or not is_plain((edge_index,)):
        return None
    from graphattn_kernels._sorting_triton import sort_edges  # on first use: it imports Triton

    found = sort_edges(edge_index, num_targets, num_sources, index_dtype(num_targets, num_sources, num_edges))
    by_target, by_source = found.structure
    graph = TokenGraph(
        Csr(by_target.ptr, by_target.index, by_target.edge_id), num_targets=num_targets, num_sources=num_sources
    )
    graph._target, graph._structure = by_target.owner, found.structure
    graph._csc = Csc(by_source.ptr, by_source.index, found.transpose_id)
    out_of_range, *lengths = found.facts.tolist()
    if out_of_range:
        check.check_edge_index(edge_index, num_targets, num_sources)  # raises, and says which
        raise AssertionError("edge_index changed while it was checked")
    for view, length in zip(found.structure, lengths, strict=True):
        if length == 0:
            as_they_stand(view, found.numbers)
    return graph


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
