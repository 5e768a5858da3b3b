"""Lets diagnostics (:mod:`graphattn.insight`) see what attention weighs, while they ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graph import TokenGraph

__all__ = ["Hop", "Seen", "tell", "unwatched", "watch", "watching"]

Hop = Callable[[Tensor, bool], Tensor]
"""Moves values ``[..., S, H, D]`` one hop: by the weights, or (True) by equal ones over all that a target may read."""


@dataclass(frozen=True)
class Seen:
    """What one call of attention weighs, detached.

    Args:
        graph: Who may read whom.
        q: ``[..., T, H, D]``, where there are queries.
        k: ``[..., S, H, D]``.
        weights: ``[..., E, H]`` of one hop, before dropout and discount, in the graph's edge order, or a function that
            computes them; ``None`` where attention has no weights of edges.
        sources: ``[..., S, H]``: the score of each source, for an attention of rank one.
        hop: Where it can be had: what reads the weights without listing the edges.
    """

    graph: TokenGraph
    q: Tensor | None
    k: Tensor | None
    weights: Tensor | Callable[[], Tensor] | None = None
    sources: Tensor | None = None
    hop: Hop | None = None

    def edge_weights(self) -> Tensor | None:
        """The weights ``[..., E, H]``, computed now where they were not yet."""
        return self.weights().detach() if callable(self.weights) else self.weights


_WATCHERS: list[Callable[[Seen], None]] = []


def watching() -> bool:
    """Whether somebody wants to know."""
    return bool(_WATCHERS)


@torch.no_grad()
def tell(seen: Seen) -> None:
    """Tell everybody who wants to know."""
    q, k, weights, sources = (
        x.detach() if isinstance(x, Tensor) else x for x in (seen.q, seen.k, seen.weights, seen.sources)
    )
    seen = Seen(seen.graph, q, k, weights, sources, seen.hop)  # type: ignore[arg-type]
    watchers = tuple(_WATCHERS)
    with unwatched():  # they may call attention themselves
        for see in watchers:
            see(seen)


@contextmanager
def unwatched() -> Iterator[None]:
    """Nobody is told of calls of attention inside the block."""
    kept = tuple(_WATCHERS)
    _WATCHERS.clear()
    try:
        yield
    finally:
        _WATCHERS[:] = kept


@contextmanager
def watch(see: Callable[[Seen], None]) -> Iterator[None]:
    """Call ``see`` for each call of attention inside the block, in this process."""
    _WATCHERS.append(see)
    try:
        yield
    finally:
        _WATCHERS.remove(see)
