"""What no fused operation does: score, normaliser and propagator one after another, by the sparse operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn._fold import Fold
from graphattn.backends.base import EdgeBias
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.normalize import Normalizer, Softmax
from graphattn.propagate import OneHop, Propagator
from graphattn.score import Score
from graphattn_kernels import sddmm, spread
from graphattn_kernels._random import dropout_scale
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["Scores", "drop", "edge_scores", "why_unfused"]


class Scores(NamedTuple):
    """Scores after scale, bias and clamp."""

    scores: Tensor
    """``[E, repeats * heads]`` in the dtype of accumulation."""
    product: Tensor | None = None
    """``[E, repeats * heads, D]``: the scaled product of each edge, if it was asked for."""


def why_unfused(
    graph: TokenGraph, score: Score | Tensor, normalizer: Normalizer, propagator: Propagator, need_weights: bool
) -> str | None:
    """Why :func:`graphattn.attend` takes the sparse operations one after another; ``None``: one does it all."""
    if isinstance(score, Tensor):
        return "the score is a ready edge tensor"
    if score.fused is None:
        return f"no kernel knows the score {type(score).__name__}"
    if score.fused == "additive" and score.additive()[0] is not None and graph.leading_axes.endswith("h"):
        return "a graph for each head meets a score with parameters for each head"
    if not isinstance(normalizer, Softmax):
        return f"no kernel knows the normaliser {type(normalizer).__name__}"
    if not isinstance(propagator, OneHop):
        return f"no kernel knows the propagator {type(propagator).__name__}"
    return "need_weights asks for the weights, which the fused operation never stores" if need_weights else None


def edge_scores(
    graph: TokenGraph,
    fold: Fold,
    q: Tensor | None,
    k: Tensor | None,
    score: Score | Tensor,
    *,
    edge_bias: EdgeBias,
    edge_gate: Tensor | None,
    scale: float | None,
    clamp: float | None,
    backend: str,
    need_product: bool = False,
) -> Scores:
    """The score of each edge; arguments as of :func:`graphattn.attend`."""
    product = None
    if isinstance(score, Tensor):
        ready = fold.edges("score", score, graph.num_edges)
        assert ready is not None
        like, scores, factor = score, ready, 1.0
    else:
        assert q is not None and k is not None
        like, factor = q, score.default_scale(q.shape[-1])
        gate = fold.edges("edge_gate", edge_gate, graph.num_edges, channels=True)
        q, k = fold.tokens(q), fold.tokens(k)
        if score.of_product:
            scores, product = _dot(graph, q, k, gate, backend, need_product)
            scores = score.from_product(scores)
        else:
            scores = _one_by_one(graph, fold, score, q, k, gate, backend)
    scores = scores.to(accumulate_dtype(like.dtype))
    factor = factor if scale is None else scale
    if factor != 1.0:
        scores = scores * factor
    bias = fold.bias(edge_bias, like, graph.num_edges)
    if bias is not None:
        scores = scores + bias
    if product is not None:
        product = (product * factor).to(like.dtype)
    return Scores(scores if clamp is None else scores.clamp(-clamp, clamp), product)


def drop(weights: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """Weights ``[E, H]`` after dropout."""
    if p == 0.0:
        return weights
    assert seed is not None
    edges = torch.arange(weights.shape[0], device=weights.device)
    return weights * dropout_scale(seed, edges, weights.shape[1], p, weights.dtype)


def _dot(
    graph: TokenGraph, q: Tensor, k: Tensor, gate: Tensor | None, backend: str, need_product: bool
) -> tuple[Tensor, Tensor | None]:
    # In the dtype of accumulation, as the fused kernels do: a half would overflow before it is scaled.
    q, k = q.to(accumulate_dtype(q.dtype)), k.to(accumulate_dtype(k.dtype))
    if gate is None and not need_product:
        return sddmm(graph.structure, q, k, backend=backend), None
    product = sddmm(graph.structure, q, k, channels=True, backend=backend)
    if gate is not None:
        product = product * gate
    return product.sum(-1), product if need_product else None


def _one_by_one(
    graph: TokenGraph, fold: Fold, score: Score, q: Tensor, k: Tensor, gate: Tensor | None, backend: str
) -> Tensor:
    structure = graph.structure
    at_target = fold.edge_heads(spread(structure, q, backend=backend))
    at_source = fold.edge_heads(spread(structure.T, k, backend=backend))
    scores = score.edge(at_target, at_source, None if gate is None else fold.edge_heads(gate))
    if scores.shape != at_target.shape[:-1]:
        raise ArgumentError(
            f"score {type(score).__name__} must return one number for each edge and head, "
            f"{list(at_target.shape[:-1])}, got {list(scores.shape)}"
        )
    return fold.own_head(scores).flatten(1)
