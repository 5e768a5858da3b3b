"""Which operations a call of attend runs, with which backend, and why."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from graphattn._fold import Fold
from graphattn._inputs import autocast, check_inputs
from graphattn.backends import BACKENDS, Call, choose, choose_steps, named
from graphattn.backends.base import EdgeBias
from graphattn.backends.pairs import why_listed
from graphattn.backends.steps import why_unfused
from graphattn.errors import BackendError
from graphattn.graph import TokenGraph
from graphattn.normalize import Normalizer, Softmax, resolve_normalizer
from graphattn.propagate import OneHop, Propagator, resolve_propagator
from graphattn.score import Score, resolve_score

__all__ = ["Explanation", "explain"]


class Explanation(NamedTuple):
    """What :func:`explain` returns; ``print`` it."""

    operations: tuple[str, ...]
    """What runs, in turn: one fused operation, or score, normaliser and propagator one after another."""
    why: str
    """Why these operations, and this backend."""
    backend: str
    """Who runs them."""
    others: dict[str, str]
    """Each other backend, with the reason why it cannot run these operations here, or why it was not taken."""

    def __str__(self) -> str:
        lines = [
            f"{' -> '.join(self.operations)} by {self.backend!r} ({BACKENDS[self.backend].about})",
            f"  {self.why}",
        ]
        return "\n".join([*lines, *(f"  not {name!r}: {reason}" for name, reason in self.others.items())])


def explain(
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
) -> Explanation:
    """Say how :func:`~graphattn.attend` would compute this, without computing it.

    Tiles of the graph are built if that is what it takes to know; they are there for the call then.

    Args:
        graph: See :func:`~graphattn.attend`, as for the others.
        q: ``[..., T, H, D]``.
        k: ``[..., S, H, D]``.
        v: ``[..., S, H, D_v]``.
        score: A name, a score or a ready edge tensor.
        normalizer: A name or a normaliser.
        propagator: A name or a propagator.
        edge_bias: Rows or a rule.
        edge_gate: Rows.
        scale: Changes nothing here.
        clamp: Bound on the score.
        dropout_p: Probability of dropping a weight.
        dropout_seed: Changes nothing here.
        need_weights: Whether the weights are asked for.
        need_lse: Whether the log-sum-exp is.
        need_product: Whether the products of the edges are.
        backend: ``"auto"`` or a name.

    Raises:
        ArgumentError: If shapes do not fit, or there is no backend of this name.
        BackendError: If a backend that was named cannot run here.
    """
    rule, mover = resolve_normalizer(normalizer), resolve_propagator(propagator)
    chosen = score if isinstance(score, Tensor) else resolve_score(score)
    q, k, values, ready = autocast(q, k, v, chosen if isinstance(chosen, Tensor) else None)
    chosen = chosen if ready is None else ready
    check_inputs(graph, q, k, values, chosen)
    assert values is not None
    unfused = why_unfused(graph, chosen, rule, mover, need_weights)
    call = None
    if unfused is None and q is not None and k is not None and isinstance(chosen, Score):
        call = Call(
            *(graph, Fold(graph, tuple(v.shape[:-3]), v.shape[-2]), q, k, values, chosen, edge_bias, edge_gate),
            *(scale, clamp, dropout_p, dropout_seed, need_lse, need_product),
        )

    def taken(name: str) -> tuple[str, str]:
        if call is None:
            return choose_steps(name, v.device), ""
        if name != "auto":
            return named(name, call).name, "it was asked for"
        found, why = choose(call)
        return found.name, why

    def reason(name: str) -> str:
        try:
            taken(name)
        except BackendError as error:
            return str(error)
        return f"it would run, but 'auto' takes {winner!r}" if backend == "auto" else f"{winner!r} was asked for"

    winner, why = taken(backend)
    others = {name: reason(name) for name in BACKENDS if name != winner}
    if call is not None:
        why = f"one fused operation does it all, and {why}"
        return Explanation((BACKENDS[winner].operation,), why, winner, others)
    needs = {"edge_bias": edge_bias is not None, "edge_gate": edge_gate is not None, "dropout_p": dropout_p > 0.0}
    asked = {"need_weights": need_weights, "need_lse": need_lse, "need_product": need_product}
    if backend == "auto" and why_listed(graph, chosen, rule, **needs, **asked) is None:
        name = "pairs in blocks" if isinstance(mover, OneHop) else f"pairs in blocks -> {type(mover).__name__}"
        return Explanation((name,), f"{unfused}; the graph is dense, and no edge of it is listed", winner, others)
    steps = [
        "sddmm" if isinstance(chosen, Score) and chosen.fused == "dot" else type(chosen).__name__,
        "segment_softmax" if isinstance(rule, Softmax) else type(rule).__name__,
        "spmm" if isinstance(mover, OneHop) else type(mover).__name__,
    ]
    if isinstance(chosen, Tensor):
        del steps[0]
    return Explanation(tuple(steps), str(unfused), winner, others)
