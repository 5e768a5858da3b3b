"""Lets diagnostics (:mod:`graphattn.insight`) see what attention weighs, while they ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from graphattn.graph import TokenGraph

__all__ = ["Seen", "tell", "watch", "watching"]


class Seen(NamedTuple):
    """What one call of attention weighed, detached.

    Args:
        graph: Who may read whom.
        q: ``[..., T, H, D]``, where there are queries.
        k: ``[..., S, H, D]``.
        weights: ``[..., E, H]`` of one hop, before dropout and discount, in the graph's edge order; ``None`` where
            attention has no weights of edges.
        sources: ``[..., S, H]``: the score of each source, for an attention of rank one.
    """

    graph: TokenGraph
    q: Tensor | None
    k: Tensor | None
    weights: Tensor | None = None
    sources: Tensor | None = None


_WATCHERS: list[Callable[[Seen], None]] = []


def watching() -> bool:
    """Whether somebody wants to know."""
    return bool(_WATCHERS)


def tell(seen: Seen) -> None:
    """Tell everybody who wants to know."""
    graph, *rest = seen
    seen = Seen(graph, *(None if x is None else x.detach() for x in rest))
    for see in tuple(_WATCHERS):
        see(seen)


@contextmanager
def watch(see: Callable[[Seen], None]) -> Iterator[None]:
    """Call ``see`` for each call of attention inside the block, in this process."""
    _WATCHERS.append(see)
    try:
        yield
    finally:
        _WATCHERS.remove(see)
