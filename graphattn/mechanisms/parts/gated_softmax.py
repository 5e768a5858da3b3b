"""The attention inside of EGT: a clipped product, a bias and a gate for each edge; by edges or as dense matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn._fold import Fold
from graphattn.attention import draw_seed
from graphattn.backends.steps import drop, edge_scores
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.lists import ListGraph, plain_lists
from graphattn.graph.rules import Complete
from graphattn.propagate import EdgeOperator
from graphattn.score import resolve_score
from graphattn_kernels import segment_softmax, segment_sum
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["Gated", "gated_softmax"]


class Gated(NamedTuple):
    """What :func:`gated_softmax` finds."""

    out: Tensor
    """``[..., T, H, D]``: values summed by weights times gates."""
    total: Tensor
    """``[..., T, H]``: sum of the gates over what a target reads."""
    scores: Tensor
    """``[..., E, H]`` after clip and bias."""


def gated_softmax(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    *,
    clamp: float | None,
    share: float | Tensor,
    dropout_p: float,
    backend: str,
) -> Gated:
    """Attention of EGT (arXiv 2108.03348, eqs. 1-3) before its degree scaler.

    Args:
        graph: Who reads whom.
        q: ``[..., T, H, D]``.
        k: ``[..., S, H, D]``.
        v: ``[..., S, H, D]``.
        bias: ``[..., E, H]``, added after the clip.
        gate: ``[..., E, H]`` before the logistic function; ``None``: all gates are 1.
        clamp: Bound on the scaled product; ``None``: none.
        share: Probability with which each edge is there (a number, or ``[E]``): by it the sum of gates is divided.
        dropout_p: Of the weights.
        backend: ``"auto"`` computes complete graphs and plain lists as dense matrices.
    """
    if backend == "auto" and not isinstance(share, Tensor):
        options = clamp, share, dropout_p
        if isinstance(graph, Complete):
            if bias is not None and bias.shape[-2] != graph.num_edges:
                raise ArgumentError(f"edge must have a row for each of {graph.num_edges} edges, got {bias.shape[-2]}")
            return _dense(q, k, v, bias, gate, *options)
        if isinstance(graph, ListGraph) and "h" not in graph.leading_axes and (index := plain_lists(graph)) is not None:
            return _blocks(graph, index, q, k, v, bias, gate, *options)
    fold = Fold(graph, tuple(q.shape[:-3]), q.shape[-2])
    scores = edge_scores(
        *(graph, fold, q, k, resolve_score("dot")),
        edge_bias=None,
        edge_gate=None,
        scale=None,
        clamp=clamp,
        backend=backend,
    ).scores
    added = fold.edges("edge bias", bias, graph.num_edges)
    scores = scores if added is None else scores + added
    weights = segment_softmax(graph.structure, scores, backend=backend)[0]
    opened = fold.edges("edge gate", gate, graph.num_edges)
    opened = torch.ones_like(weights) if opened is None else opened.to(weights.dtype).sigmoid()
    kept = weights * opened
    if dropout_p > 0.0:
        kept = drop(kept, dropout_p, draw_seed(device=v.device))
    values = fold.tokens(v)
    out = EdgeOperator(graph, kept.to(v.dtype), backend, fold.per_head).matmul(values)
    counted = opened / (share.unsqueeze(-1) if isinstance(share, Tensor) else share)
    total = segment_sum(graph.structure, counted, backend=backend)
    return Gated(
        fold.untokens(out, graph.num_targets),
        fold.untokens(total.unsqueeze(-1), graph.num_targets).squeeze(-1),
        fold.unedges(scores.to(q.dtype)),
    )


def _blocks(
    graph: ListGraph,
    index: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    *options: Any,
) -> Gated:
    """Each block of targets with the sources of its list, gathered; ``index [copies, blocks, m]`` ascends."""
    copies, blocks, _ = index.shape
    own = graph.leading_axes == "b"

    def gather(x: Tensor) -> Tensor:  # [..., S, H, D] to [..., blocks, m, H, D]
        if not own:
            return x.index_select(-3, index.flatten()).unflatten(-3, index.shape[1:])
        place = index.flatten(1)[..., None, None].expand(*x.shape[:-3], -1, *x.shape[-2:])
        return x.gather(-3, place).unflatten(-3, index.shape[1:])

    def split(x: Tensor | None) -> Tensor | None:  # [..., E, H] to [..., blocks, E of a block, H]
        return None if x is None else x.unflatten(-2, (copies, blocks, -1) if own else (blocks, -1))

    q = q.unflatten(-3, (blocks, graph.block))
    out, total, scores = _dense(q, gather(k), gather(v), split(bias), split(gate), *options)
    flat = scores.flatten(-3, -2)
    return Gated(out.flatten(-4, -3), total.flatten(-3, -2), flat.flatten(-3, -2) if own else flat)


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    clamp: float | None,
    share: float,
    dropout_p: float,
) -> Gated:
    """On all pairs of targets and sources, by matrix products."""
    targets, sources = q.shape[-3], k.shape[-3]
    exact = accumulate_dtype(q.dtype)
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # [..., H, T, S]
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)
    if bias is not None:
        scores = scores + _pairs(bias, targets, sources)
    kept = scores.softmax(-1, dtype=exact).to(v.dtype)
    if gate is None:
        total = scores.new_full((*scores.shape[:-1],), sources, dtype=exact)
    else:
        opened = _pairs(gate, targets, sources).sigmoid()
        kept, total = kept * opened, opened.sum(-1, dtype=exact)
    if dropout_p > 0.0:
        kept = torch.dropout(kept, dropout_p, True)
    out = (kept @ v).transpose(-3, -2)
    flat = scores.movedim(-3, -1).flatten(-3, -2)
    return Gated(out, (total / share).transpose(-2, -1), flat)


def _pairs(x: Tensor, targets: int, sources: int) -> Tensor:
    """``[..., E, H]`` to ``[..., H, T, S]``."""
    return x.unflatten(-2, (targets, sources)).movedim(-1, -3)
