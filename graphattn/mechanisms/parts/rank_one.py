"""Scores of rank one on any token graph: a number for each source, and what targets read with it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graphattn._inputs import autocast, check_graph, check_inputs
from graphattn._watch import Seen, tell, watching
from graphattn.attention import propagate
from graphattn.backends.remembered import kind_of, recall, remember
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.graph.rules import Blocks, Causal, Complete
from graphattn.propagate.relu import of_one_size
from graphattn_kernels import rank_one_attention
from graphattn_kernels._random import check_dropout, dropout_scale
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["Pool", "Side", "check_choices", "source_scores", "target_rows"]

Side = Literal["left", "right"]
Pool = Literal["read", "readers"]


def source_scores(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    *,
    side: Side = "left",
    steps: int = 1,
    pool: Pool | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """The scores a of :func:`~graphattn.mechanisms.linear_infsa.linear_infsa`, ``[..., S, H]``, in float32 for half
    types; arguments as there."""
    check_choices(graph, side, steps, pool)
    check_inputs(graph, q, k, None, "rank_one")
    with torch.autocast(q.device.type, enabled=False):
        dtype, scale = accumulate_dtype(q.dtype), max(1, q.shape[-1]) ** -0.5
        asks, answers = (q, k) if side == "left" else (k, q)  # pooled, and scored
        asks, answers = asks.to(dtype) * scale, answers.to(dtype) * scale
        over = graph.T if (pool or _default_pool(graph)) == "readers" else graph
        weights = torch.linalg.vector_norm(asks, dim=-1)
        for _ in range(steps):
            rows, total = _weighted(over, weights, asks, backend)
            pooled = rows / (total + eps).unsqueeze(-1)
            weights = torch.einsum("...nhd,...nhd->...nh", pooled.expand(answers.shape), answers).relu()
    return weights


def target_rows(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    side: Side,
    steps: int,
    pool: Pool | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    eps: float,
    backend: str,
    *,
    factor: float = 1.0,
    spread: bool = False,
) -> Tensor:
    """What targets read, by ``factor``: ``[..., T, H, C]``, or ``[..., 1, H, C]`` where it is one row for all and is
    not to be spread."""
    check_graph(graph)
    check_choices(graph, side, steps, pool)
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    kind = kind_of(q, k, v, "rank_one", None, None)
    if not recall(graph, kind):
        check_inputs(graph, q, k, v, "rank_one")
        remember(graph, kind, True)
    check_dropout(dropout_p, dropout_seed, v.device)
    if watching():  # beside the call, which takes its usual way
        with torch.no_grad():
            seen = source_scores(graph, q, k, side=side, steps=steps, pool=pool, eps=eps, backend=backend)
        tell(Seen(graph, q, k, sources=seen))
    if side == "left" and steps == 1 and dropout_p == 0.0 and isinstance(graph.pattern, Complete | Blocks):
        return _fused(graph, q, k, v, eps, factor, spread)
    scores = source_scores(graph, q, k, side=side, steps=steps, pool=pool, eps=eps, backend=backend)
    with torch.autocast(v.device.type, enabled=False):
        values = v.to(scores.dtype)
        kept = scores
        if dropout_p > 0.0 and dropout_seed is not None:
            heads = scores.shape[-1]
            every = torch.arange(scores.numel() // max(1, heads), device=v.device)
            kept = scores * dropout_scale(dropout_seed, every, heads, dropout_p, scores.dtype).view_as(scores)
        rows, total = _weighted(graph, kept, values, backend)
        if kept is not scores:
            _, total = _weighted(graph, scores, values[..., :0], backend)
        rows = (rows / (total + eps).unsqueeze(-1) * factor).to(v.dtype)
        return rows.expand(*rows.shape[:-3], graph.num_targets, *rows.shape[-2:]) if spread else rows


def _fused(graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, eps: float, factor: float, spread: bool) -> Tensor:
    """One row for each member, by the operation that reads its inputs once; spread over the member's targets."""
    leading, members, scale = v.shape[:-3], graph.num_members, 1.0 / max(1, q.shape[-1])
    spread = spread or members > 1
    if members == 1 and len(leading) < 2:  # as it is: a view less is time on the host
        rows = rank_one_attention(q, k, v, scale=scale, eps=eps, factor=factor, spread=spread)
        return rows if spread else rows.unsqueeze(-3)
    if of_one_size(graph):
        count = leading.numel() * members
        q, k, v = (x.reshape(count, x.shape[-3] // max(1, members), *x.shape[-2:]) for x in (q, k, v))
        rows = rank_one_attention(q, k, v, scale=scale, eps=eps, factor=factor, spread=spread)
        return rows.reshape(*leading, graph.num_targets if spread else 1, *rows.shape[-2:])
    heads, target_ptr, source_ptr = v.shape[-2], graph.target_ptr, graph.source_ptr
    if leading:  # entries that share the graph are more heads
        q, k, v = (x.flatten(0, -4).transpose(0, 1).flatten(1, 2) for x in (q, k, v))
    rows = rank_one_attention(
        q, k, v, scale=scale, target_ptr=target_ptr, source_ptr=source_ptr, eps=eps, factor=factor
    )
    rows = Members.of_targets(graph).spread(rows)
    return rows.unflatten(1, (-1, heads)).transpose(0, 1).unflatten(0, leading) if leading else rows


def _weighted(graph: TokenGraph, weights: Tensor, rows: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Sums of ``weights [..., S, H]`` times ``rows [..., S, H, C]``, and of weights, over what each target reads:
    ``[..., T, H, C]`` and ``[..., T, H]``, with 1 for T where it is the same for all."""
    rule = graph.pattern
    if isinstance(rule, Complete):
        return torch.einsum("...nh,...nhc->...hc", weights, rows).unsqueeze(-3), weights.sum(-2, keepdim=True)
    both = torch.cat([weights.unsqueeze(-1) * rows, weights.unsqueeze(-1)], -1)
    if type(rule) is Causal:
        both = both.cumsum(-3)
    elif isinstance(rule, Blocks):
        sums = Members.of_sources(graph).sum(both.movedim(-3, 0))
        both = Members.of_targets(graph).spread(sums).movedim(0, -3)
    else:
        both = propagate(graph, both.new_ones(graph.num_edges), both, backend=backend)
    return both[..., :-1], both[..., -1]


def _default_pool(graph: TokenGraph) -> Pool:
    return "read" if graph.is_square else "readers"


def check_choices(graph: TokenGraph | None, side: str, steps: int, pool: str | None) -> None:
    """Raise unless the choices of :func:`~graphattn.mechanisms.linear_infsa.linear_infsa` go together."""
    if side not in ("left", "right"):
        raise ArgumentError(f"side must be 'left' or 'right', got {side!r}")
    if pool not in (None, "read", "readers"):
        raise ArgumentError(f"pool must be 'read', 'readers' or None, got {pool!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"steps must be a positive number, got {steps!r}")
    if side == "right" and pool == "readers":
        raise ArgumentError("pool must be 'read' for the right side, whose power step it is; got 'readers'")
    if graph is not None and not graph.is_square and (side == "right" or steps > 1 or pool == "read"):
        raise ArgumentError(
            "side='right', steps above 1 and pool='read' need a graph whose sources are its targets, got "
            f"{graph.num_targets} targets and {graph.num_sources} sources"
        )
