"""The best edges of each target, among those of a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.token_graph import TokenGraph

__all__ = ["best_edges"]


def best_edges(
    graph: TokenGraph,
    scores: Tensor,
    count: Tensor,
    *,
    threshold: float | None,
    keep_self: bool,
    full_rows: int,
    heads: int,
    axes: str,
) -> tuple[TokenGraph, Tensor]:
    """The best in-edges of each target among the edges of a graph; ties go to the first edge.

    Args:
        graph: Candidates.
        scores: ``[copies, E]`` in the caller's edge order, without gradient; a copy for each head (and batch entry).
        count: int64 ``[T]``: how many of each target.
        threshold: Keep what is above it instead.
        keep_self: A token keeps its edges to itself, where it has some, besides.
        full_rows: First so many targets, of each member, keep all edges.
        heads: The last of the leading dimensions that the copies are.
        axes: What the copies are: ``"h"`` or ``"bh"``.

    Returns:
        The graph, and the number of each of its edges in the copies of the candidates, ``copy * E + edge``, in their
        order.
    """
    rowptr, row, edge_id, edges = graph.rowptr.long(), graph.row.long(), graph.edge_id, graph.num_edges
    order = torch.arange(edges, device=graph.device) if edge_id is None else edge_id.long()
    scores = scores[:, order]
    own = graph.col.long() == row
    if keep_self:  # they take no place from others
        scores = scores.masked_fill(own, float("-inf"))
    if threshold is not None:
        chosen = scores > threshold
    else:
        # Row by row, best first: two stable sorts.
        best = scores.argsort(dim=-1, descending=True, stable=True)
        best = best.gather(-1, row[best].argsort(dim=-1, stable=True))
        rank = torch.arange(edges, device=graph.device) - rowptr[row]
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, (rank < count[row]).expand_as(best))
    if keep_self:
        chosen = chosen | own
    if full_rows:
        begin = 0 if graph.target_ptr is None else graph.target_ptr.long()[graph.target_batch[row]]
        chosen = chosen | (row - begin < full_rows)
    copies = scores.shape[0]
    copy, edge = chosen.nonzero(as_tuple=True)
    targets = graph.num_targets
    sizes = torch.zeros(copies * targets + 1, dtype=torch.int64, device=graph.device)
    sizes[1:] = torch.bincount(copy * targets + row[edge], minlength=copies * targets).cumsum(0)
    leading = (copies,) if axes == "h" else (copies // heads, heads)
    found = TokenGraph(
        _csr(sizes, copy * graph.num_sources + graph.col[edge]),
        num_targets=targets,
        num_sources=graph.num_sources,
        target_ptr=graph.target_ptr,
        source_ptr=graph.source_ptr,
        leading=leading,
        leading_axes=axes,
    )
    return found, copy * edges + order[edge]


def _csr(rowptr: Tensor, col: Tensor) -> Csr:
    dtype = index_dtype(rowptr.shape[0], col.shape[0])
    return Csr(rowptr.to(dtype), col.to(dtype), None)
