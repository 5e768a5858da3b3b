"""Which operations a call of attend runs, with which backend, and why."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from graphattn._inputs import check_inputs
from graphattn.attention import why_unfused
from graphattn.errors import BackendError
from graphattn.graph import TokenGraph
from graphattn.normalize import Normalizer, Softmax, resolve_normalizer
from graphattn.propagate import OneHop, Propagator, resolve_propagator
from graphattn.score import Score, resolve_score
from graphattn_kernels.backends import BACKENDS, choose
from graphattn_kernels.csr_attention.api import select

__all__ = ["Explanation", "explain"]


class Explanation(NamedTuple):
    """What :func:`explain` returns; ``print`` it."""

    operations: tuple[str, ...]
    """What runs, in turn: one fused operation, or score, normaliser and propagator one after another."""
    why: str
    """Why these operations."""
    backend: str
    """Who runs them."""
    others: dict[str, str]
    """Each other backend, with the reason why it cannot run these operations here, or why it was not taken."""

    def __str__(self) -> str:
        lines = [f"{' -> '.join(self.operations)} by {self.backend!r} ({BACKENDS[self.backend]})", f"  {self.why}"]
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
    need_weights: bool = False,
    backend: str = "auto",
) -> Explanation:
    """Say how :func:`~graphattn.attend` would compute this, without computing it.

    Args:
        graph: See :func:`~graphattn.attend`, as for the others; options that are not here change nothing.
        q: ``[..., T, H, D]``.
        k: ``[..., S, H, D]``.
        v: ``[..., S, H, D_v]``.
        score: A name, a score or a ready edge tensor.
        normalizer: A name or a normaliser.
        propagator: A name or a propagator.
        need_weights: Whether the weights are asked for.
        backend: ``"auto"`` or a name.

    Raises:
        ArgumentError: If shapes do not fit, or there is no backend of this name.
        BackendError: If a backend that was named cannot run here.
    """
    rule, mover = resolve_normalizer(normalizer), resolve_propagator(propagator)
    chosen = score if isinstance(score, Tensor) else resolve_score(score)
    check_inputs(graph, q, k, v, chosen)
    unfused = why_unfused(chosen, rule, mover, need_weights)

    def taken(name: str) -> str:
        return choose(name) if q is None or unfused is not None else select(name, q, v)

    def reason(name: str) -> str:
        try:
            taken(name)
        except BackendError as error:
            return str(error)
        return f"it would run, but 'auto' takes {winner!r}" if backend == "auto" else f"{winner!r} was asked for"

    winner = taken(backend)
    others = {name: reason(name) for name in BACKENDS if name != winner}
    if unfused is None:
        return Explanation(("csr_attention",), "one fused operation does it all", winner, others)
    steps = [
        "sddmm" if isinstance(chosen, Score) and chosen.fused == "dot" else type(chosen).__name__,
        "segment_softmax" if isinstance(rule, Softmax) else type(rule).__name__,
        "spmm" if isinstance(mover, OneHop) else type(mover).__name__,
    ]
    if isinstance(chosen, Tensor):
        del steps[0]
    return Explanation(tuple(steps), unfused, winner, others)
