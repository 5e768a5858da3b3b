"""Graphs as sets of edges: union, intersection, difference, composition, powers.

Results hold each edge once, target-major with ascending sources. Graphs with leading dimensions are combined
copy by copy. Patterns combine into patterns.

Members of a ragged batch: the union of two batches keeps them where both have the same (otherwise tokens of
different members may meet, and the result is one member); the intersection keeps those of either; the
difference keeps those of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.token_graph import TokenGraph

__all__ = ["coalesce", "compose", "difference", "intersection", "power", "union"]

Ptrs = tuple[Tensor | None, Tensor | None]

_EXPANSION = 1 << 22  # edges of a composition that are held at once, before duplicates go


def union(first: TokenGraph, second: TokenGraph) -> TokenGraph:
    """Edges of either graph."""
    _check_alike(first, second, "a | b")
    ptrs = _ptrs(first) if _same_members(first, second) else (None, None)
    if first.pattern is not None and second.pattern is not None:
        from graphattn.graph.pattern import Union

        return Union(first.pattern, second.pattern, *ptrs)
    keys = torch.cat([_unique_keys(first), _unique_keys(second)]).sort().values
    return _from_keys(keys.unique_consecutive(), first, ptrs)


def intersection(first: TokenGraph, second: TokenGraph) -> TokenGraph:
    """Edges of both graphs."""
    _check_alike(first, second, "a & b")
    ptrs = _ptrs(first if first.target_ptr is not None else second)
    if first.pattern is not None and second.pattern is not None:
        from graphattn.graph.pattern import Intersection

        return Intersection(first.pattern, second.pattern, *ptrs)
    if first.pattern is not None:
        first, second = second, first
    keys = _unique_keys(first)
    return _from_keys(keys[_found(keys, second)], first, ptrs)


def difference(first: TokenGraph, second: TokenGraph) -> TokenGraph:
    """Edges of the first graph that are not edges of the second."""
    _check_alike(first, second, "a - b")
    if first.pattern is not None and second.pattern is not None:
        from graphattn.graph.pattern import Difference

        return Difference(first.pattern, second.pattern, *_ptrs(first))
    keys = _unique_keys(first)
    return _from_keys(keys[~_found(keys, second)], first, _ptrs(first))


def compose(first: TokenGraph, second: TokenGraph) -> TokenGraph:
    """Two steps as one, as in the product of boolean matrices with targets as rows: an edge ``s -> t`` wherever
    ``second`` has ``s -> m`` and ``first`` has ``m -> t`` for some ``m``."""
    what = "a @ b"
    _check_device(first, second, what)
    if first.num_sources != second.num_targets:
        raise ArgumentError(
            f"{what} needs the sources of a to be the targets of b, got {first.num_sources} sources and "
            f"{second.num_targets} targets"
        )
    _check_leading(first, second, what)
    keep = first.source_ptr is not None and _equal(first.source_ptr, second.target_ptr)
    ptrs = (first.target_ptr, second.source_ptr) if keep else (None, None)
    keys = _composed_keys(first, second)
    return _from_keys(keys, first, ptrs, num_sources=second.num_sources)


def power(graph: TokenGraph, hops: int) -> TokenGraph:
    """An edge ``s -> t`` wherever a walk of 1 to ``hops`` edges leads from ``s`` to ``t``."""
    graph._need_square("power")
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 1:
        raise ArgumentError(f"hops must be an int of 1 or more, got {hops!r}")
    reached = graph.coalesce()
    new = reached
    for _ in range(hops - 1):
        # A shortest walk of i + 1 edges is one edge after a shortest walk of i.
        new = difference(compose(graph, new), reached)
        if new.num_edges == 0:
            break
        reached = union(reached, new)
    return reached


def coalesce(graph: TokenGraph) -> TokenGraph:
    """Each edge once, target-major with ascending sources."""
    if graph.pattern is not None:
        return graph
    return _from_keys(_unique_keys(graph), graph, _ptrs(graph))


# --- edges as numbers: target * number of sources + source ------------------------------------------------


def _keys(graph: TokenGraph) -> Tensor:
    """int64 ``[E]``, ascending."""
    return graph.row.long() * (graph.num_copies * graph.num_sources) + graph.col


def _unique_keys(graph: TokenGraph) -> Tensor:
    keys = _keys(graph)
    return keys if graph.pattern is not None else keys.unique_consecutive()


def _found(keys: Tensor, graph: TokenGraph) -> Tensor:
    """Which keys are edges of the graph."""
    if graph.pattern is not None:
        sources = max(graph.num_copies * graph.num_sources, 1)
        return graph.pattern.contains(keys // sources, keys % sources)
    known = _keys(graph)
    if known.shape[0] == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    at = torch.searchsorted(known, keys).clamp_(max=known.shape[0] - 1)
    return known[at] == keys


def _from_keys(keys: Tensor, like: TokenGraph, ptrs: Ptrs, num_sources: int | None = None) -> TokenGraph:
    """A graph from ascending keys without duplicates."""
    num_sources = like.num_sources if num_sources is None else num_sources
    rows, width = like.num_copies * like.num_targets, max(like.num_copies * num_sources, 1)
    dtype = index_dtype(rows, width, keys.shape[0])
    rowptr = torch.searchsorted(keys, torch.arange(rows + 1, device=keys.device) * width)
    return TokenGraph(
        Csr(rowptr.to(dtype), (keys % width).to(dtype), None),
        num_targets=like.num_targets,
        num_sources=num_sources,
        target_ptr=ptrs[0],
        source_ptr=ptrs[1],
        leading=like.leading,
        leading_axes=like.leading_axes,
    )


def _composed_keys(first: TokenGraph, second: TokenGraph) -> Tensor:
    """Keys of all two-step walks, a bounded number of walks at a time."""
    width = second.num_copies * second.num_sources
    begin = second.rowptr[:-1].long().index_select(0, first.col)
    count = second.rowptr.diff().long().index_select(0, first.col)
    walks = torch.cat([count.new_zeros(1), count.cumsum(0)])
    # Rows of `first` go together while their walks fit, so that the parts are in ascending order.
    part_of_row = walks[first.rowptr[:-1].long()] // _EXPANSION
    cuts = first.rowptr[:-1][part_of_row.diff(prepend=part_of_row.new_full((1,), -1)) > 0].tolist()
    parts = []
    for start, stop in zip(cuts, [*cuts[1:], first.num_edges], strict=False):  # no cuts: no rows
        some = count[start:stop]
        edge = torch.repeat_interleave(torch.arange(start, stop, device=some.device), some)
        within = torch.arange(edge.shape[0], device=some.device) - (walks[edge] - walks[start])
        source = second.col[begin[edge] + within]
        parts.append(torch.unique(first.row[edge].long() * width + source))
    return torch.cat(parts) if parts else walks.new_zeros(0)


# --- members and checks --------------------------------------------------------------------------------------


def _ptrs(graph: TokenGraph) -> Ptrs:
    return graph.target_ptr, graph.source_ptr


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None or first is second:
        return first is second
    return torch.equal(first.long(), second.long())


def _same_members(first: TokenGraph, second: TokenGraph) -> bool:
    return _equal(first.target_ptr, second.target_ptr) and _equal(first.source_ptr, second.source_ptr)


def _check_alike(first: TokenGraph, second: TokenGraph, what: str) -> None:
    _check_device(first, second, what)
    sizes = [(graph.num_targets, graph.num_sources) for graph in (first, second)]
    if sizes[0] != sizes[1]:
        raise ArgumentError(
            f"{what} needs two graphs of one size, got {sizes[0][0]} targets and {sizes[0][1]} sources, and "
            f"{sizes[1][0]} targets and {sizes[1][1]} sources"
        )
    _check_leading(first, second, what)


def _check_device(first: TokenGraph, second: TokenGraph, what: str) -> None:
    for graph in (first, second):
        if not isinstance(graph, TokenGraph):
            raise ArgumentTypeError(f"{what} needs two token graphs, got {type(graph).__name__}")
    if first.device != second.device:
        raise ArgumentError(f"{what} needs two graphs on one device, got {first.device} and {second.device}")


def _check_leading(first: TokenGraph, second: TokenGraph, what: str) -> None:
    if (first.leading, first.leading_axes) != (second.leading, second.leading_axes):
        raise ArgumentError(
            f"{what} needs two graphs with the same leading dimensions, got {list(first.leading)} "
            f"({first.leading_axes!r}) and {list(second.leading)} ({second.leading_axes!r})"
        )
