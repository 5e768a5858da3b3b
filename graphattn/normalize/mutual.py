"""Both ends of an edge must want it."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.normalize.base import NORMALIZERS, Normalizer

__all__ = ["Mutual", "reverse_where_any"]


@NORMALIZERS.register("mutual")
class Mutual(Normalizer):
    """:math:`w_{st} = \\sigma(a_{st})\\, \\sigma(a_{ts})`: a sigmoid for each edge, times that of the reverse edge.

    Symmetric, whatever the scores; edges do not compete. On the grid of 8 neighbours, these are the bilateral votes of
    a connectivity cube (Yang et al., "BiconNet", 2022; ConnNet, arXiv 1804.07836, agrees by a threshold). Of duplicate
    edges the first goes with the first.

    Args:
        combine: ``"product"``, or ``"min"``: :math:`\\min(\\sigma(a_{st}), \\sigma(a_{ts}))`, whose threshold is the
            hard rule.
        one_way: What an edge without a reverse is worth: ``"error"``, or ``"zero"``, since nobody answers.

    Raises:
        ArgumentError: If an argument is unknown; if the graph is bipartite; with ``one_way="error"``, if some edge has
            no reverse.
    """

    def __init__(self, combine: str = "product", one_way: str = "error") -> None:
        super().__init__()
        if combine not in ("product", "min"):
            raise ArgumentError(f"combine must be 'product' or 'min', got {combine!r}")
        if one_way not in ("error", "zero"):
            raise ArgumentError(f"one_way must be 'error' or 'zero', got {one_way!r}")
        self.combine, self.one_way = combine, one_way

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        mine = scores.sigmoid()
        if self.one_way == "error":
            theirs = mine.index_select(0, graph.reverse_edge)
        else:
            reverse, there = reverse_where_any(graph)
            theirs = mine.index_select(0, reverse)
            if there is not None:
                theirs = theirs.masked_fill(~there.unsqueeze(1), 0.0)
        return mine * theirs if self.combine == "product" else torch.minimum(mine, theirs)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"combine={self.combine!r}, one_way={self.one_way!r}"


def reverse_where_any(graph: TokenGraph) -> tuple[Tensor, Tensor | None]:
    """The reverse of each edge that has one, int64 ``[E]``, and bool ``[E]``, which do (``None``: all).

    Raises:
        ArgumentError: If the graph is bipartite.
    """
    graph._need_square("mutual agreement")
    if graph.is_symmetric:
        return graph.reverse_edge, None
    source, target = graph.edge_index
    tokens = graph.num_copies * graph.num_tokens
    key = target * tokens + source
    ordered, order = key.sort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    copy = place - torch.searchsorted(ordered, key)  # 0 for the first of duplicates, 1 for the second
    wanted = source * tokens + target
    at = torch.searchsorted(ordered, wanted) + copy
    there = at < len(order)
    at = at.clamp(max=max(0, len(order) - 1))
    if len(order):
        there &= ordered[at] == wanted
    return order.index_select(0, at), there
