"""Calls of attend that no fused operation serves: by blocks of pairs where the graph is dense, else edge by edge."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn._fold import Fold
from graphattn.backends.auto import choose_steps
from graphattn.backends.base import EdgeBias, Result
from graphattn.backends.pairs import pair_operator, why_listed
from graphattn.backends.steps import drop, edge_scores
from graphattn.graph import TokenGraph
from graphattn.normalize import Normalizer, Softmax
from graphattn.propagate import AttentionOperator, EdgeOperator, OneHop, Propagator
from graphattn.score import Score
from graphattn_kernels import segment_softmax
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["attend_unfused", "move", "working_dtype"]


def attend_unfused(
    graph: TokenGraph,
    fold: Fold,
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    score: Score | Tensor,
    rule: Normalizer,
    mover: Propagator,
    *,
    edge_bias: EdgeBias,
    edge_gate: Tensor | None,
    scale: float | None,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    need_weights: bool,
    need_lse: bool,
    need_product: bool,
    backend: str,
) -> tuple[Result, Tensor | None]:
    """Score, normaliser and propagator one after another; arguments as of :func:`graphattn.attend`, checked.

    Returns:
        What a backend returns, and where they were asked for the weights before dropout ``[..., E, H]``, in the dtype
        of accumulation.
    """
    targets = graph.num_targets
    asked = {
        "edge_bias": edge_bias is not None,
        "edge_gate": edge_gate is not None,
        "dropout_p": dropout_p > 0.0,
        "need_weights": need_weights,
        "need_lse": need_lse,
        "need_product": need_product,
    }
    dtype = working_dtype(mover, v)
    if backend == "auto" and why_listed(graph, score, rule, **asked) is None:
        assert q is not None and k is not None and isinstance(score, Score)
        pairs = pair_operator(graph, fold, q, k, score, rule, scale=scale, clamp=clamp, dtype=dtype)
        return Result(fold.untokens(move(mover, pairs, fold, v), targets)), None

    choose_steps(backend, v.device)  # says so where a backend was named that has none
    scores, product = edge_scores(
        *(graph, fold, q, k, score),
        edge_bias=edge_bias,
        edge_gate=edge_gate,
        scale=scale,
        clamp=clamp,
        backend=backend,
        need_product=need_product,
    )
    lse = None
    if isinstance(rule, Softmax):
        weights, lse = segment_softmax(graph.structure, scores, backend=backend)
    else:
        weights = rule(graph, scores, backend)
    kept = drop(weights, dropout_p, dropout_seed)
    operator = EdgeOperator(graph, kept.to(dtype), backend, fold.per_head)
    result = Result(
        fold.untokens(move(mover, operator, fold, v), targets),
        fold.untokens(lse.unsqueeze(-1), targets).squeeze(-1) if need_lse and lse is not None else None,
        None if product is None else fold.unedges(product),
    )
    return result, fold.unedges(weights) if need_weights else None


def working_dtype(mover: Propagator, values: Tensor) -> torch.dtype:
    """The dtype that a propagator works in: many products in turn would add up the rounding of a half type."""
    return values.dtype if isinstance(mover, OneHop) else accumulate_dtype(values.dtype)


def move(mover: Propagator, operator: AttentionOperator, fold: Fold, values: Tensor) -> Tensor:
    """Values ``[..., S, H, D]`` to ``[T', H', D]``, folded, in their dtype."""
    return mover(operator, fold.tokens(values).to(working_dtype(mover, values))).to(values.dtype)
