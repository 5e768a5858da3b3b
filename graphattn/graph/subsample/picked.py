"""Sub-graphs of any graph, for SSA: edges are picked one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.subsample.chance import draw
from graphattn.graph.subsample.hops import gumbel_edges
from graphattn.graph.subsample.plan import Drawn, Plan, first_tokens, kept_of, member_start
from graphattn.graph.subsample.ragged import ragged_sources
from graphattn.graph.token_graph import TokenGraph

__all__ = ["pick_edges"]


def pick_edges(
    graph: TokenGraph,
    plan: Plan,
    batch: int | None,
    generator: torch.Generator | None,
    self_offset: int | None,
    need_edges: bool,
    need_share: bool,
) -> Drawn:
    """The edges that were drawn, or whose source was, or is in the window of the target; self-edges stay. Waits for the
    device."""
    targets, sources, device = graph.num_targets, graph.num_sources, graph.device
    if batch is not None and graph.leading:
        raise ArgumentError(
            f"a graph with leading dimensions {list(graph.leading)} cannot be drawn anew for {batch} more batch entries"
        )
    copies = 1 if batch is None else batch
    row, col = graph.row.long(), graph.col.long()
    target, source = row % targets, col % sources
    copy = col // max(sources, 1)  # of the graph itself
    if plan.scheme == "pairs":
        keep = draw(torch.rand, (copies, row.shape[0]), generator, device) < plan.keep
        share = torch.full((row.shape[0],), plan.keep, device=device)
    elif plan.scheme == "hops":
        keep, share = gumbel_edges(graph, plan, copies, generator)
    elif plan.scheme == "uniform":
        kept, part = _sources(graph, plan, max(copies, graph.num_copies), generator)
        keep = kept[copy, source].unsqueeze(0) if batch is None else kept[:, source]
        share = part[source]
    else:
        begin, window, rank, part = _windows(graph, plan, max(copies, graph.num_copies), generator)
        place = (rank[copy, source].unsqueeze(0) if batch is None else rank[:, source]) - begin[target]
        keep = (place >= 0) & (place < window[target])
        share = part[source]
    sure = source - member_start(graph, source) < plan.always
    if self_offset is not None and plan.keep_self is not False:
        sure = sure | (target + self_offset == source)
    keep = keep | sure
    share = share.masked_fill(sure, 1.0)

    edges = row.shape[0]
    before = torch.cat([torch.zeros(1, dtype=torch.long, device=device), keep.flatten().cumsum(0)])
    starts = torch.arange(copies, device=device)[:, None] * edges + graph.rowptr[:-1].long()
    at = keep.flatten().nonzero().squeeze(1)
    rowptr = torch.cat([before[starts.flatten()], before[-1:]])
    own = at % max(edges, 1)
    rows_of_copy = graph.num_copies * sources
    dtype = index_dtype(copies * graph.num_copies * targets, copies * rows_of_copy, at.shape[0])
    csr = Csr(rowptr.to(dtype), (col[own] + at // max(edges, 1) * rows_of_copy).to(dtype), None)
    drawn = TokenGraph(
        csr,
        num_targets=targets,
        num_sources=sources,
        target_ptr=graph.target_ptr,
        source_ptr=graph.source_ptr,
        leading=graph.leading if batch is None else (batch,),
        leading_axes=graph.leading_axes if batch is None else "b",
        known_causal=graph.known_causal,
    )
    number = None
    if need_edges:
        number = (own if graph.edge_id is None else graph.edge_id.long()[own]) + at // max(edges, 1) * edges
    if not need_share:
        return Drawn(drawn, number, 1.0)
    return Drawn(drawn, number, share[own] if share.dim() == 1 else share.flatten()[at])


def _sources(graph: TokenGraph, plan: Plan, copies: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """bool ``[copies, S]``: which sources were drawn, the same number of each member; and their probability ``[S]``."""
    sources, device = graph.num_sources, graph.device
    ptr = graph.source_ptr
    if ptr is None:
        ptr = torch.tensor([0, sources], device=device)
    every = torch.arange(copies, device=device)[:, None] * sources + ptr[:-1]
    flat = torch.cat([every.flatten(), every.new_full((1,), copies * sources)])
    always = first_tokens(graph, plan.always)
    kept = ragged_sources(
        *(flat, plan.keep),
        num_tokens=copies * sources,
        generator=generator,
        minimum=plan.minimum,
        always=None if always is None else always.repeat(copies),
    )
    sizes = ptr.diff()
    first = torch.minimum(sizes, torch.full_like(sizes, plan.always))
    part = ((kept_of(sizes, plan) - first) / (sizes - first).clamp(min=1)).float().clamp(0.0, 1.0)
    return kept.view(copies, sources), part[graph.source_batch]


def _windows(
    graph: TokenGraph, plan: Plan, copies: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the window of each target begins and its size ``[T]``, the place of each source ``[copies, S]``, and the
    probability ``[S]``: windows along the order of tokens, or of their positions, in each member by itself. As in
    :func:`jittered_windows`, the last one reaches back, so that all are of one size."""
    if plan.shape is not None:
        raise ArgumentError("scheme='local' with a shape is for complete and causal graphs")
    if not graph.is_square:
        raise ArgumentError("scheme='local' needs a square graph, got targets that are not the sources")
    tokens, device = graph.num_tokens, graph.device
    ptr, member = graph.target_ptr, graph.target_batch
    sizes = torch.full((1,), tokens, device=device) if ptr is None else ptr.diff().long()
    window = kept_of(sizes, plan)[member]
    start = member_start(graph, torch.arange(tokens, device=device))
    place = torch.arange(tokens, device=device) - start
    if plan.positions is not None:
        along = _ranks(plan.positions, member, tokens) - start
    else:
        along = place
    sigma = window.float() if plan.sigma is None else plan.sigma
    where = device if generator is None else generator.device
    noise = torch.randn(copies, tokens, generator=generator, device=where).to(device)
    noisy = along + sigma * noise if plan.sigma is None or math.isfinite(plan.sigma) else noise
    order = noisy.argsort(dim=1)
    order = order.gather(1, member[order].argsort(dim=1, stable=True))
    rank = torch.empty_like(order).scatter_(1, order, place.expand(copies, -1))
    begin = torch.minimum(along // window.clamp(min=1) * window, sizes[member] - window)
    return begin, window, rank, (window / sizes[member].clamp(min=1)).float()


def _ranks(positions: Tensor, member: Tensor, tokens: int) -> Tensor:
    """int64 ``[N]``: place of each token in the order of members, then of positions, then of tokens."""
    flat = positions.squeeze(-1) if positions.dim() == 2 else positions
    if flat.shape != (tokens,):
        raise ArgumentError(
            f"positions must be [{tokens}] or [{tokens}, 1] on a graph of edges, got {list(positions.shape)}; several "
            "coordinates are for complete and causal graphs"
        )
    order = flat.argsort(stable=True)
    order = order[member[order].argsort(stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(tokens, device=order.device))
