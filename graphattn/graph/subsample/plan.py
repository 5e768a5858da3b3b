"""How SSA draws a sub-graph, and what it then has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graph.subsample.chance import counts_kept
from graphattn.graph.token_graph import TokenGraph

__all__ = ["Drawn", "Plan", "first_tokens", "kept_of", "member_start"]


class Plan(NamedTuple):
    """How a sub-graph is drawn."""

    scheme: str
    """``"uniform"``, ``"local"``, ``"pairs"`` or ``"hops"``."""
    keep: float
    sigma: float | None
    minimum: int
    always: int
    """The first so many tokens of each member are read by all."""
    keep_self: bool | None
    shape: tuple[int, int] | None
    """Rows and columns of a grid of tokens (after those that are always read)."""
    positions: Tensor | None = None
    """Floating ``[N]`` (complete and causal graphs: or ``[N, k]``), for the local scheme; ``None``: as tokens stand."""
    hops: Tensor | None = None
    """``[E]`` in the caller's edge order, for the scheme by hops."""


class Drawn(NamedTuple):
    """A sub-graph, and what its edges were."""

    graph: TokenGraph
    edge: Tensor | None
    """int64 ``[E']``: where each of its edges stands among the edge rows of the whole graph (flat over batch entries,
    each of which has all of them), if asked for."""
    share: float | Tensor
    """Probability with which an edge is there: a number, or ``[E']``."""


def kept_of(sizes: Tensor, plan: Plan) -> Tensor:
    """How many of so many tokens are kept, as :func:`count_kept` counts them."""
    return counts_kept(sizes, plan.keep, max(plan.minimum, plan.always))


def first_tokens(graph: TokenGraph, count: int) -> Tensor | None:
    """bool ``[S]``: the first tokens of each member."""
    if not count:
        return None
    token = torch.arange(graph.num_sources, device=graph.device)
    return token - member_start(graph, token) < count


def member_start(graph: TokenGraph, source: Tensor) -> Tensor:
    """The first source of the member that each source belongs to."""
    ptr = graph.source_ptr
    return torch.zeros_like(source) if ptr is None else ptr.long()[graph.source_batch[source]]
