"""Dense patterns without their edges: which calls of attend :class:`~graphattn.propagate.PairOperator` serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphattn._fold import Fold
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.graph.rules import Blocks, Complete, Prefix
from graphattn.normalize import Flow, Frobenius, Normalizer, Sigmoid, Softmax, Sum, Symmetric
from graphattn.propagate import PairOperator
from graphattn.propagate.operator import AttentionOperator
from graphattn.propagate.relu import ReluOperator, is_dense
from graphattn.score import ReluDotScore, Score

__all__ = ["pair_operator", "why_listed"]

# Those of the library's own formulas; a class derived from one may have another.
_KNOWN = (Softmax, Sigmoid, Frobenius, Sum, Symmetric, Flow)


def _same(scores: Tensor) -> Tensor:
    return scores


_WEIGH: dict[type[Normalizer], tuple[Callable[[Tensor], Tensor], float]] = {
    Softmax: (torch.exp, float("-inf")),
    Sigmoid: (torch.sigmoid, float("-inf")),
}


def why_listed(graph: TokenGraph, score: Score | Tensor, normalizer: Normalizer, **needs: Any) -> str | None:
    """Why the edges of the graph are listed; ``None``: they need not be.

    Args:
        graph: The graph.
        score: The score.
        normalizer: The normaliser.
        **needs: What else was asked for by name, and stands for edge tensors where it is true.
    """
    pattern = graph.pattern
    if not isinstance(pattern, (Complete, Blocks, Prefix)) or graph.num_members == 0:
        return "the graph is not complete, causal, a prefix, or blocks"
    if isinstance(score, Tensor) or not score.of_product:
        return "the score is not a function of the dot product"
    if type(normalizer) not in _KNOWN:
        return f"the normaliser {type(normalizer).__name__} needs edges"
    asked = [name for name, value in needs.items() if value]
    return f"{asked[0]} is about edges" if asked else None


def pair_operator(
    graph: TokenGraph,
    fold: Fold,
    q: Tensor,
    k: Tensor,
    score: Score,
    rule: Normalizer,
    *,
    scale: float | None,
    clamp: float | None,
    dtype: torch.dtype,
) -> AttentionOperator:
    """The operator of a call, for which :func:`why_listed` has no reason, for values of a dtype."""
    scale = score.default_scale(q.shape[-1]) if scale is None else scale
    q, k = fold.tokens(q).to(dtype), fold.tokens(k).to(dtype)
    if type(score) is ReluDotScore and type(rule) is Frobenius and is_dense(graph):
        if scale > 0 and clamp is None and not rule.rescale:
            return ReluOperator(graph, q, k, scale=scale, eps=rule.eps, per_head=fold.per_head)

    def scores(product: Tensor) -> Tensor:
        x = score.from_product(product) * scale
        return x if clamp is None else x.clamp(-clamp, clamp)

    weigh, nothing = _WEIGH.get(type(rule), (_same, 0.0))
    pairs = PairOperator(graph, q, k, scores, weigh, nothing, per_head=fold.per_head)
    if isinstance(rule, Sigmoid):
        return pairs
    if isinstance(rule, Softmax):
        shifted = pairs.with_factors(shift=pairs.row_max())
        total = shifted.row_sum()
        some = total > 0
        inverse = torch.where(some, 1 / torch.where(some, total, 1), 0)
        return shifted.with_factors(row=inverse, shift=shifted.shift)
    if isinstance(rule, Frobenius):
        members = Members.of_targets(graph)
        return pairs.with_factors(row=members.spread(rule.factor(members.sum(pairs.square_sum()), members)))
    if isinstance(rule, Sum):
        return pairs.with_factors(row=rule.factor(pairs.row_sum()))
    if isinstance(rule, Flow):
        rule.check(graph)

        def times(x: Tensor) -> Tensor:
            return pairs.matmul(x.unsqueeze(-1)).squeeze(-1)

        def t_times(x: Tensor) -> Tensor:
            return pairs.t_matmul(x.unsqueeze(-1)).squeeze(-1)

        row, column = rule.factors(graph, times, t_times, q[..., 0])
        return pairs.with_factors(row=row, column=column)
    assert isinstance(rule, Symmetric)
    return pairs.with_factors(row=rule.factor(pairs.row_sum()), column=rule.factor(pairs.column_sum()))
