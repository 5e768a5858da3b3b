"""The sub-graph of any graph that SSA draws: as lists where the graph is dense, as picked edges elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from graphattn.errors import ArgumentError
from graphattn.graph.bits import BitGraph
from graphattn.graph.lists import ListGraph, plain_lists
from graphattn.graph.rules import Blocks, Causal, Complete
from graphattn.graph.subsample.chance import count_kept
from graphattn.graph.subsample.local import jittered_windows
from graphattn.graph.subsample.picked import pick_edges
from graphattn.graph.subsample.plan import Drawn, Plan, first_tokens, kept_of
from graphattn.graph.subsample.ragged import ragged_uniform
from graphattn.graph.subsample.uniform import uniform_graph, uniform_pairs, uniform_sources
from graphattn.graph.token_graph import TokenGraph

__all__ = ["draw_subgraph"]


def draw_subgraph(
    graph: TokenGraph,
    plan: Plan,
    batch: int | None,
    generator: torch.Generator | None,
    *,
    self_offset: int | None,
    need_edges: bool,
    need_share: bool,
) -> Drawn:
    """Draw a sub-graph.

    Args:
        graph: Any graph, explicit or not; one that has leading dimensions keeps them.
        plan: How.
        batch: So many batch entries share the graph, each to get its own sub-graph; ``None``: no such dimension.
        generator: Source of chance.
        self_offset: Target t is source ``t + self_offset``; ``None``: targets are no sources.
        need_edges: Whether :attr:`Drawn.edge` is wanted.
        need_share: Whether :attr:`Drawn.share` is wanted.
    """
    if graph.source_ptr is None and plan.always > graph.num_sources:
        raise ArgumentError(f"always must be no more than the {graph.num_sources} tokens, got {plan.always}")
    found: ListGraph | BitGraph
    if plan.scheme == "pairs" and type(graph) in (Complete, Causal) and graph.is_square:
        found = _pairs(graph, plan, batch, generator)
    elif plan.scheme in ("pairs", "hops"):
        return pick_edges(graph, plan, batch, generator, self_offset, need_edges, need_share)
    elif type(graph) in (Complete, Causal) and graph.is_square:
        found = _lists(graph, plan, batch, generator)
        own = isinstance(graph, Causal) if plan.keep_self is None else plan.keep_self
        if own != found.reads_itself:
            found = ListGraph(found.lists._replace(own=own, disjoint=False), found.leading)
    elif _is_ragged(graph, plan, batch):
        assert graph.target_ptr is not None
        found = ragged_uniform(
            *(graph.target_ptr, plan.keep),
            num_tokens=graph.num_targets,
            most=_most_tokens(graph),
            generator=generator,
            minimum=plan.minimum,
            always=first_tokens(graph, plan.always),
            most_always=plan.always,
        )
    else:
        return pick_edges(graph, plan, batch, generator, self_offset, need_edges, need_share)
    edge = _numbers(graph, found) if need_edges else None
    share: float | Tensor = 1.0
    if need_share:
        share = _share(graph, found, plan) if isinstance(found, ListGraph) else _share_of_pairs(graph, found, plan)
    return Drawn(found, edge, share)


# --- dense graphs -----------------------------------------------------------------------------------------


def _lists(graph: TokenGraph, plan: Plan, batch: int | None, generator: torch.Generator | None) -> ListGraph:
    """Of a complete or causal graph."""
    tokens, device, causal = graph.num_tokens, graph.device, isinstance(graph, Causal)
    always = _always(graph, plan)
    if plan.scheme == "uniform":
        return uniform_graph(
            *(tokens, plan.keep),
            batch=batch,
            generator=generator,
            always=always,
            minimum=plan.minimum,
            causal=causal,
            device=device,
        )
    rest = tokens - plan.always
    where: int | tuple[int, int] | Tensor = plan.shape if plan.shape is not None else rest
    if plan.positions is not None:
        where = _after(plan, tokens)
    if isinstance(where, tuple) and math.prod(where) != rest:
        raise ArgumentError(f"shape must be of {rest} tokens (without those that are always read), got {where}")
    sigma = float(count_kept(rest, plan.keep, plan.minimum)) if plan.sigma is None else plan.sigma
    found = jittered_windows(
        *(where, plan.keep, sigma, generator), batch=batch, minimum=min(plan.minimum, rest), device=device
    )
    if always is not None:
        found = _with_always(found, always, tokens, generator)
    return found.causal(keep_self=True) if causal else found


def _after(plan: Plan, tokens: int) -> Tensor:
    """The positions of the tokens that are not always read."""
    positions = plan.positions
    assert positions is not None
    if not positions.is_floating_point() or positions.dim() not in (1, 2) or positions.shape[0] != tokens:
        raise ArgumentError(
            f"positions must be floating [{tokens}] or [{tokens}, k], got {positions.dtype} {list(positions.shape)}"
        )
    if positions.dim() == 2 and positions.shape[1] > 1 and plan.sigma is None:
        raise ArgumentError("several coordinates need sigma, in their units")
    return positions[plan.always :]


def _pairs(graph: TokenGraph, plan: Plan, batch: int | None, generator: torch.Generator | None) -> BitGraph:
    """Each pair of a complete or causal graph by itself; tokens read themselves, so that no row is empty."""
    return uniform_pairs(
        *(graph.num_tokens, plan.keep),
        batch=() if batch is None else (batch,),
        axes="" if batch is None else "b",
        generator=generator,
        keep_self=plan.keep_self is not False,
        always=_always(graph, plan),
        causal=isinstance(graph, Causal),
        device=graph.device,
    )


def _always(graph: TokenGraph, plan: Plan) -> Tensor | None:
    return torch.arange(plan.always, device=graph.device) if plan.always else None


def _share_of_pairs(graph: TokenGraph, found: BitGraph, plan: Plan) -> Tensor:
    target, source = found.row.long() % graph.num_targets, found.col.long() % graph.num_sources
    sure = source < plan.always
    if plan.keep_self is not False:
        sure = sure | (target == source)
    return torch.full(sure.shape, plan.keep, device=graph.device).masked_fill(sure, 1.0)


def _with_always(found: ListGraph, always: Tensor, tokens: int, generator: torch.Generator | None) -> ListGraph:
    """Lists over all but the first tokens, with these in each of them; they read as many others, from anywhere."""
    lists, first = found.lists, always.shape[0]
    index, rest = lists.index + first, tokens - first
    copies, blocks, window = index.shape
    anywhere = uniform_sources(
        *(rest, window / max(rest, 1)), batch=(copies,), generator=generator, minimum=window, device=index.device
    )
    index = torch.cat([index, (anywhere + first).unsqueeze(1).to(index.dtype)], dim=1)
    index = torch.cat([always.to(index.dtype).expand(copies, blocks + 1, -1), index], dim=2)
    place = lists.target
    if place is None:
        place = torch.arange(blocks * lists.block, device=index.device).view(1, -1)
        place = place.masked_fill(place >= rest, -1)
    place = torch.where(place < 0, place, place + first)
    room = -first % lists.block  # their own blocks, filled up
    own = F.pad(always, (0, room), value=-1).expand(place.shape[0], -1)
    if own.shape[1] > lists.block:  # more than a block of them: each reads the same list
        extra = own.shape[1] // lists.block - 1
        index = torch.cat([index, index[:, -1:].expand(-1, extra, -1)], dim=1)
    place = torch.cat([place, own.to(place.dtype)], dim=1).int().contiguous()
    changed = lists._replace(
        index=index.contiguous(), target=place, num_targets=tokens, num_sources=tokens, disjoint=False
    )
    return ListGraph(changed, found.leading)


def _numbers(graph: TokenGraph, found: ListGraph | BitGraph) -> Tensor:
    """Where the edges of a sub-graph stand among those of a complete, causal or block graph."""
    targets, sources, copies = graph.num_targets, graph.num_sources, found.num_copies
    index = plain_lists(found) if isinstance(graph, Complete) and isinstance(found, ListGraph) else None
    if index is not None:
        assert isinstance(found, ListGraph)
        target = torch.arange(targets, device=graph.device).view(1, -1, found.block, 1) * sources
        copy = torch.arange(copies, device=graph.device).view(-1, 1, 1, 1) * (targets * sources)
        return (copy + target + index.unsqueeze(2)).flatten()
    row, col = found.row.long(), found.col.long()
    target, source = row % targets, col % sources
    if isinstance(graph, Complete):
        first = target * sources
    elif isinstance(graph, Causal):
        first = target * (target + 1) // 2
    else:
        ptr = graph.source_ptr
        assert ptr is not None
        first = graph.rowptr.long()[target] - ptr.long()[graph.target_batch[target]]
    return row // targets * graph.num_edges + first + source


def _share(graph: TokenGraph, found: ListGraph, plan: Plan) -> float | Tensor:
    """Of uniform sources: how many are drawn of how many. Of windows: the size of the window."""
    if plan.always == 0 and isinstance(graph, Complete) and not found.reads_itself:
        return found.lists.room / graph.num_sources
    if isinstance(graph, Blocks):
        ptr = graph.target_ptr
        assert ptr is not None
        sizes = ptr.diff()
        count = kept_of(sizes, plan)
        first = torch.minimum(sizes, torch.full_like(sizes, plan.always))
        share = ((count - first) / (sizes - first).clamp(min=1)).clamp(max=1.0)
        share = share[graph.target_batch[found.row.long()]].float()
        member = graph.target_batch[found.col.long()]
        source = found.col.long() - ptr.long()[member]
    else:
        rest = max(graph.num_sources - plan.always, 1)
        share = torch.full_like(found.col, 1, dtype=torch.float32) * ((found.lists.room - plan.always) / rest)
        source = found.col.long() % graph.num_sources
        if found.lists.own:
            share = share.masked_fill(found.row % graph.num_targets == source, 1.0)
    return share.masked_fill(source < plan.always, 1.0) if plan.always else share


def _is_ragged(graph: TokenGraph, plan: Plan, batch: int | None) -> bool:
    """Whether it is a batch of complete graphs for which there are lists."""
    simple = plan.scheme == "uniform" and not plan.keep_self and batch is None
    return simple and isinstance(graph, Blocks) and graph.is_square


def _most_tokens(graph: TokenGraph) -> int:
    """Tokens of the largest member; looked up once for each graph, which waits for the device."""
    found: int | None = graph.__dict__.get("_most_tokens")
    if found is None:
        assert graph.target_ptr is not None
        found = int(graph.target_ptr.diff().max()) if graph.num_members else 0
        graph.__dict__["_most_tokens"] = found
    return found
