"""Sources by their distance in a graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.bits import BitGraph
from graphattn.graph.subsample.chance import Generator, count_kept, counts_kept, draw
from graphattn.graph.subsample.plan import Plan
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels.select_sources import select_bits

__all__ = ["gumbel_edges", "gumbel_hops", "hops_between"]


def gumbel_hops(
    hops: Tensor | TokenGraph,
    keep: float,
    tau: float,
    generator: Generator = None,
    *,
    axes: str = "",
    minimum: int = 1,
    most: int = 8,
) -> BitGraph:
    """Sources drawn without replacement with weights exp(-hops / tau) (Gumbel top-m), neighbours kept in any case.

    Args:
        hops: ``[*leading, N, N]`` distances from target (row) to source, in hops
            (:func:`graphattn.encoding.hop_distance` computes them, once); negative or infinite: never read. Or a
            square graph without leading dimensions, whose distances are then found in every call.
        keep: Share of the sources that each target reads, where it has that many.
        tau: Distance over which the weight falls by e, in hops.
        generator: See :func:`uniform_sources`.
        axes: What the leading dimensions are: ``""``, ``"h"``, ``"b"`` or ``"bh"``.
        minimum: Least number of sources.
        most: Of a graph, hops beyond which nothing is read.

    Returns:
        A graph of bits; a target has m sources, or as many as it has within one hop (itself counted), if that is more,
        or as many as it reaches, if that is less.

    Raises:
        ArgumentError: If ``tau`` is not positive.
    """
    if not tau > 0:
        raise ArgumentError(f"tau must be positive, got {tau}")
    if isinstance(hops, TokenGraph):
        hops = hops_between(hops, most)
    if not isinstance(hops, Tensor) or hops.dim() < 2:
        got = list(hops.shape) if isinstance(hops, Tensor) else type(hops).__name__
        raise ArgumentTypeError(f"hops must be a tensor [..., N, N], got {got}")
    tokens = hops.shape[-1]
    flat = hops.reshape(math.prod(hops.shape[:-2]), *hops.shape[-2:])
    distance = flat.float()
    reached = (flat >= 0) & torch.isfinite(distance)
    scores = _gumbel(tuple(flat.shape), generator, hops.device) - distance / tau
    near = reached & (distance <= 1)
    scores = scores.masked_fill(~reached, float("-inf")).masked_fill(near, float("inf"))
    words = select_bits(scores, count_kept(tokens, keep, minimum)) | select_bits(near, at=0)
    return BitGraph(words.view(*hops.shape[:-2], *words.shape[1:]), tokens, axes)


def gumbel_edges(
    graph: TokenGraph, plan: Plan, copies: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The same among the in-edges of each target, whose hops are given edge by edge, for some copies.

    Returns:
        bool ``[copies, E]`` in the graph's own order: which edges are drawn; and the probability of each, given the
        keys of the others (the largest key that was not drawn: Cohen & Kaplan, "Bottom-k sketches", 2007), with which
        sums over what was drawn are unbiased, provided that a target has fewer edges within one hop than it keeps.
        Where those fill its quota, edges from further away are never drawn, and the sums lack them.
    """
    edges, hops = graph.num_edges, plan.hops
    tau = 1.0 if plan.sigma is None else plan.sigma
    if hops is None:
        raise ArgumentError(
            "scheme='hops' needs hops, the distance of each edge's source from its target: a function of the "
            "graph or an argument of the call"
        )
    if hops.shape != (edges,):
        raise ArgumentError(f"hops must be [{edges}], a number for each edge, got {list(hops.shape)}")
    if not tau > 0:
        raise ArgumentError(f"sigma must be positive with scheme='hops', got {tau}")
    distance = hops if graph.edge_id is None else hops.index_select(0, graph.edge_id.long())
    reached = (distance >= 0) & torch.isfinite(distance.float())
    near = reached & (distance <= 1)
    weight = (-distance.float() / tau).masked_fill(~reached, float("-inf"))
    keys = (_gumbel((copies, edges), generator, graph.device) + weight).masked_fill(near, float("inf"))
    # Row by row, largest key first: two stable sorts.
    row, begin = graph.row.long(), graph.rowptr.long()
    order = keys.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, row[order].argsort(dim=1, stable=True))
    degree = begin.diff()
    count = counts_kept(degree, plan.keep, plan.minimum)
    rank = torch.arange(edges, device=graph.device) - begin[row]
    drawn = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, order, (rank < count[row]).expand_as(order))
    last = (begin[:-1] + count).clamp(max=max(edges - 1, 0))  # the first that was not drawn
    limit = keys.gather(1, order)[:, last] if edges else keys.new_zeros(copies, count.shape[0])
    limit = limit.masked_fill(count >= degree, float("-inf"))[:, row]
    share = -torch.expm1(-(weight - limit).exp())
    return (drawn & reached) | near, share.masked_fill(near | (limit == float("-inf")), 1.0)


def _gumbel(shape: tuple[int, ...], generator: Generator, device: torch.device) -> Tensor:
    uniform = draw(torch.rand, shape, generator, device).clamp_min_(torch.finfo(torch.float32).tiny)
    return -(-uniform.log()).log()


def hops_between(graph: TokenGraph, most: int) -> Tensor:
    """``[N, N]``: hops from target to source, 0 for itself, -1 beyond ``most``; waits for nothing but the edges."""
    graph._need_square("gumbel_hops")
    if graph.leading:
        raise ArgumentError(f"gumbel_hops needs a graph without leading dimensions, got {list(graph.leading)}")
    adjacency = graph.to_dense()
    hops = torch.where(adjacency, 1, -1).fill_diagonal_(0)
    step = adjacency.float()
    reached = hops >= 0
    for distance in range(2, most + 1):
        further = (reached.float() @ step > 0) & ~reached
        hops = torch.where(further, distance, hops)
        reached = reached | further
    return hops
