"""The one operation: attention over a token graph, as score x normaliser x propagator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn._fold import Fold
from graphattn._inputs import (
    autocast,
    check_backend,
    check_clamp,
    check_edge_tensor,
    check_graph,
    check_inputs,
    check_rows,
)
from graphattn._merge import AttentionOutput, merge
from graphattn._watch import Seen, tell, watching
from graphattn.backends import Call, choose, named
from graphattn.backends.base import Backend, EdgeBias
from graphattn.backends.remembered import kind_of, recall, remember
from graphattn.backends.steps import edge_scores, why_unfused
from graphattn.backends.unfused import attend_unfused, move, working_dtype
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.normalize import Normalizer, Softmax, resolve_normalizer
from graphattn.propagate import EdgeOperator, Propagator, resolve_propagator
from graphattn.score import Score, resolve_score
from graphattn_kernels._random import check_dropout

__all__ = ["AttentionOutput", "attend", "draw_seed", "edge_weights", "merge", "propagate"]


def attend(
    graph: TokenGraph,
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    *,
    score: str | Score | Tensor = "dot",
    normalizer: str | Normalizer = "softmax",
    propagator: str | Propagator = "one_hop",
    edge_bias: EdgeBias = None,
    edge_gate: Tensor | None = None,
    scale: float | None = None,
    clamp: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    need_weights: bool = False,
    need_lse: bool = False,
    need_product: bool = False,
    backend: str = "auto",
) -> Tensor | AttentionOutput:
    """Attention of every target over the sources that the graph lets it read.

    With a dot score and softmax, for an edge :math:`e = (s \\to t)` and head :math:`h`:

    .. math::
        a_{eh} = \\operatorname{clamp}\\Big(\\sigma \\sum_d q_{thd} k_{shd} g_{ehd} + b_{eh}\\Big), \\qquad
        y_{th} = \\sum_{e \\to t} \\operatorname{softmax}_{e \\to t}(a_{eh})\\, v_{sh}

    A target without an in-edge gets exactly 0 and finite gradients; duplicate edges count twice. Half types are
    accumulated in float32. The same input gives the same bits, but for gradients of the backends that are not ours
    (``"sdpa"``, ``"flex"``, ``"flash"``) on CUDA, which PyTorch makes deterministic on request
    (``torch.use_deterministic_algorithms``).

    Args:
        graph: Who may read whom.
        q: ``[..., T, H, D]`` queries. Leading dimensions share the graph, unless the graph has its own.
        k: ``[..., S, H, D]`` keys.
        v: ``[..., S, H, D_v]`` values.
        score: A name, a :class:`~graphattn.score.Score`, or a ready edge tensor ``[..., E, H]`` (then ``q = k =
            None``).
        normalizer: A name or a :class:`~graphattn.normalize.Normalizer`.
        propagator: A name or a :class:`~graphattn.propagate.Propagator`.
        edge_bias: ``[E]``, ``[E, H]`` or ``[..., E, H]``, added to the score; or a function of integer tensors
            ``(target [E, 1], source [E, 1], head [H])`` that returns what broadcasts to ``[E, H]`` (ALiBi, say).
        edge_gate: ``[E, H, D]`` or ``[..., E, H, D]``, handed to the score: the dot score multiplies it with q * k in
            each channel, additive scores add it to q + k.
        scale: Factor on the score before bias and clamp; default ``D ** -0.5`` for the dot score, else 1.
        clamp: Bound on the magnitude of the score, applied last.
        dropout_p: Probability of dropping a weight, after the normaliser.
        dropout_seed: int64 ``[2]`` on the device of ``v`` (see :func:`draw_seed`), needed where ``dropout_p > 0``. The
            same seed drops the same weights.
        need_weights: Return the weights, too.
        need_lse: Return the log-sum-exp, too (softmax only).
        need_product: Return the product of each edge, too, whose sum over channels is the score (dot score only): the
            edge output of the graph transformer.
        backend: ``"auto"`` or the name of a backend (:func:`graphattn.list_backends`); :func:`graphattn.explain` says
            which one ``"auto"`` takes, and why not the others.

    Edge tensors are in the caller's edge order for explicit graphs, target-major with ascending sources for patterns.
    Where the graph has leading dimensions of its own, its edges are flat over its copies
    (:attr:`~graphattn.TokenGraph.edge_slices`), so edge tensors have none for them; with a graph for each head, H is 1.

    Returns:
        ``[..., T, H, D_v]``, or an :class:`AttentionOutput` if weights or lse are asked for; all differentiable.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If types, dtypes or devices do not fit.
        BackendError: If a backend that was named cannot run this; the text says why.
    """
    rule = resolve_normalizer(normalizer)
    mover = resolve_propagator(propagator)
    is_softmax = isinstance(rule, Softmax)
    if need_lse and not is_softmax:
        raise ArgumentError(f"need_lse needs the softmax normaliser, got {type(rule).__name__}")
    check_graph(graph)
    check_clamp(clamp)
    check_backend(backend)
    q, k, values, score, edge_bias, edge_gate = _cast(q, k, v, score, edge_bias, edge_gate)
    # Of equal calls only the first is checked, but for what is not of tensors: values of options, and the seed.
    options = clamp is None, dropout_p == 0.0, need_lse, need_product, backend
    kind = kind_of(q, k, values, score, edge_bias, edge_gate, *options)
    chosen: Backend | None = recall(graph, kind)
    if chosen is None:
        check_inputs(graph, q, k, values, score, edge_bias=_rows(edge_bias), edge_gate=edge_gate)
    if values is None:
        raise ArgumentTypeError("v must be a floating tensor, got None")
    check_dropout(dropout_p, dropout_seed, values.device)
    if need_product and (isinstance(score, Tensor) or score.fused != "dot"):
        got = "a ready edge tensor" if isinstance(score, Tensor) else type(score).__name__
        raise ArgumentError(f"need_product needs the dot score, got {got}")
    fold = Fold(graph, tuple(values.shape[:-3]), values.shape[-2])
    if watching():  # beside the call, which takes its usual way
        shared = {"edge_bias": edge_bias, "edge_gate": edge_gate, "scale": scale, "clamp": clamp}
        tell(_seen(graph, q, k, score, rule, shared, backend))

    weights = None
    if why_unfused(graph, score, rule, mover, need_weights) is None:
        assert q is not None and k is not None and isinstance(score, Score)
        call = Call(
            *(graph, fold, q, k, values, score, edge_bias, edge_gate, scale, clamp),
            *(dropout_p, dropout_seed, need_lse, need_product),
        )
        if chosen is None:
            chosen = choose(call)[0] if backend == "auto" else named(backend, call)
            remember(graph, kind, chosen)
        result = chosen.run(call)
    else:
        result, weights = attend_unfused(
            *(graph, fold, q, k, values, score, rule, mover),
            edge_bias=edge_bias,
            edge_gate=edge_gate,
            scale=scale,
            clamp=clamp,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            need_weights=need_weights,
            need_lse=need_lse,
            need_product=need_product,
            backend=backend,
        )
    if not (need_weights or need_lse or need_product):
        return result.out
    return AttentionOutput(result.out, None if weights is None else weights.to(v.dtype), result.lse, result.product)


def edge_weights(
    graph: TokenGraph,
    q: Tensor | None,
    k: Tensor | None,
    *,
    score: str | Score | Tensor = "dot",
    normalizer: str | Normalizer = "softmax",
    edge_bias: EdgeBias = None,
    edge_gate: Tensor | None = None,
    scale: float | None = None,
    clamp: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Score and normalise: the weights of :func:`attend` without moving a value.

    Args:
        graph: Who may read whom.
        q: ``[..., T, H, D]``, or ``None`` with a ready score.
        k: ``[..., S, H, D]``, or ``None`` with a ready score.
        score: See :func:`attend`; a ready score is ``[E, H]`` or ``[..., E, H]``.
        normalizer: See :func:`attend`.
        edge_bias: See :func:`attend`.
        edge_gate: See :func:`attend`.
        scale: See :func:`attend`.
        clamp: See :func:`attend`.
        backend: See :func:`attend`.

    Returns:
        ``[..., E, H]`` in the caller's edge order.

    Raises:
        ArgumentError: If shapes or values do not fit.
    """
    check_graph(graph)
    check_clamp(clamp)
    q, k, _, score, edge_bias, edge_gate = _cast(q, k, None, score, edge_bias, edge_gate)
    check_inputs(graph, q, k, None, score, edge_bias=_rows(edge_bias), edge_gate=edge_gate)
    like = score if isinstance(score, Tensor) else q
    assert like is not None
    fold = Fold(graph, *(_score_leading(graph, like) if like is score else (tuple(like.shape[:-3]), like.shape[-2])))
    scores = edge_scores(
        *(graph, fold, q, k, score),
        edge_bias=edge_bias,
        edge_gate=edge_gate,
        scale=scale,
        clamp=clamp,
        backend=backend,
    ).scores
    return fold.unedges(resolve_normalizer(normalizer)(graph, scores, backend).to(like.dtype))


def propagate(
    graph: TokenGraph,
    weights: Tensor,
    v: Tensor,
    propagator: str | Propagator = "one_hop",
    *,
    backend: str = "auto",
) -> Tensor:
    """Move values along given weights.

    Args:
        graph: Who may read whom.
        weights: ``[E]``, ``[E, H]`` or ``[..., E, H]`` in the caller's edge order.
        v: ``[..., S, H, D]``.
        propagator: A name or a :class:`~graphattn.propagate.Propagator`.
        backend: See :func:`attend`.

    Returns:
        ``[..., T, H, D]``.

    Raises:
        ArgumentError: If shapes do not fit.
    """
    check_graph(graph)
    check_rows("v", v, graph.num_sources, "sources")
    check_edge_tensor("weights", weights, graph.device)
    fold = Fold(graph, tuple(v.shape[:-3]), v.shape[-2])
    folded = fold.edges("weights", weights, graph.num_edges)
    assert folded is not None
    mover = resolve_propagator(propagator)
    operator = EdgeOperator(graph, folded.to(working_dtype(mover, v)), backend, fold.per_head)
    return fold.untokens(move(mover, operator, fold, v), graph.num_targets)


def draw_seed(generator: torch.Generator | None = None, device: torch.device | str | None = None) -> Tensor:
    """A seed for ``dropout_seed``.

    Args:
        generator: Where randomness comes from; default: the global generator of the device.
        device: Where the seed is used; default: the generator's device, else the CPU.

    Returns:
        int64 ``[2]``.
    """
    source = generator.device if generator is not None else device
    seed = torch.randint(0, 2**62, (2,), generator=generator, device=source)
    return seed if device is None else seed.to(device)


def _cast(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    score: str | Score | Tensor,
    edge_bias: EdgeBias,
    edge_gate: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Score | Tensor, EdgeBias, Tensor | None]:
    """The score resolved, and everything in the dtype of autocast where it is on."""
    ready = score if isinstance(score, Tensor) else None
    q, k, v, ready, rows, edge_gate = autocast(q, k, v, ready, _rows(edge_bias), edge_gate)
    chosen = resolve_score(score) if ready is None else ready  # type: ignore[arg-type]
    return q, k, v, chosen, edge_bias if callable(edge_bias) else rows, edge_gate


def _rows(edge_bias: EdgeBias) -> Tensor | None:
    """A bias that is not a function."""
    return None if callable(edge_bias) else edge_bias


def _seen(
    graph: TokenGraph,
    q: Tensor | None,
    k: Tensor | None,
    score: Score | Tensor,
    rule: Normalizer,
    shared: dict[str, Any],
    backend: str,
) -> Seen:
    """The call as diagnostics see it: nothing of the size of the edges unless they ask."""

    def weights() -> Tensor:
        return edge_weights(graph, q, k, score=score, normalizer=rule, **shared)

    def hop(values: Tensor, equal: bool) -> Tensor:
        if equal:
            even = torch.zeros_like(score) if isinstance(score, Tensor) else "dot"
            zero = None if isinstance(score, Tensor) or q is None else torch.zeros_like(q)
            found = attend(graph, zero, None if zero is None else k, values, score=even, backend=backend)
        else:
            found = attend(graph, q, k, values, score=score, normalizer=rule, backend=backend, **shared)
        assert isinstance(found, Tensor)
        return found

    return Seen(graph, q, k, weights, hop=hop)


def _score_leading(graph: TokenGraph, score: Tensor) -> tuple[tuple[int, ...], int]:
    """Leading dimensions and heads that belong to a ready score ``[..., E, H]``."""
    own = graph.leading
    batch = own[:1] if graph.leading_axes.startswith("b") else ()
    heads = own[-1] if graph.leading_axes.endswith("h") else (score.shape[-1] if score.dim() > 1 else 1)
    return (*score.shape[:-2], *batch), heads
