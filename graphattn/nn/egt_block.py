"""The block of the edge-augmented graph transformer, on which SSA acts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import SSA, Mechanism
from graphattn.nn.feed_forward import FeedForward

__all__ = ["EGTBlock"]


class EGTBlock(nn.Module):
    """Norm, attention, residual, norm, feed-forward, residual, for tokens and for edges (Hussain et al., KDD 2022,
    arXiv 2108.03348).

    .. math::
        (s, t) = \\mathrm{attention}(\\mathrm{norm}(x), \\mathrm{norm}(e)), \\qquad
        x' = x + s, \\; x'' = x' + \\mathrm{FFN}(\\mathrm{norm}(x')), \\qquad
        e' = e + t, \\; e'' = e' + \\mathrm{FFN}_e(\\mathrm{norm}(e'))

    Where the attention is :class:`~graphattn.mechanisms.SSA`, it draws a sub-graph for the block: edge rows of its
    edges alone are normalised, read and made anew, and all others pass through (the natural reading of the paper of
    SSA, unverified). So whatever the block holds for its backward pass shrinks with the sub-graph; the edge rows
    themselves do not.

    Args:
        attention: A mechanism, ``EGTAttention`` in the paper, or :class:`~graphattn.mechanisms.SSA` around one.
        width: Channels of a token row.
        edge_width: Channels of an edge row; ``None``: no edge rows.
        edge_update: Whether edge rows are made anew (not in a last block: nobody reads them).
        expansion: Hidden channels of the tokens' feed-forward network (ELU) as a multiple of ``width``.
        edge_expansion: The same for edges.
        dropout: On the output of attention and of the feed-forward network, tokens only.
    """

    def __init__(
        self,
        attention: Mechanism,
        width: int,
        edge_width: int | None = None,
        *,
        edge_update: bool = True,
        expansion: float = 2.0,
        edge_expansion: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, expansion, activation="elu")
        self.dropout = nn.Dropout(dropout)
        self.edge_norm1 = nn.LayerNorm(edge_width) if edge_width else None
        updates = edge_width is not None and edge_update
        self.edge_norm2 = nn.LayerNorm(edge_width) if edge_width and updates else None
        self.edge_feed_forward = (
            FeedForward(edge_width, edge_expansion, activation="elu") if edge_width and updates else None
        )

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """New token rows and edge rows, in the shapes of the given ones (:meth:`Mechanism.forward
        <graphattn.mechanisms.Mechanism.forward>`).

        Raises:
            ArgumentError: If edge rows are missing, or there should be none.
        """
        if (edge is None) != (self.edge_norm1 is None):
            what = "no edge rows" if self.edge_norm1 is None else "edge rows"
            raise ArgumentError(
                f"this block was made for {what}, got edge={None if edge is None else list(edge.shape)}"
            )
        attention = self.attention
        if isinstance(attention, SSA) and attention.draws:
            step, new, number = attention.on_subgraph(self._attend, x, graph, edge)
            x = self._tokens(x, step)
            if edge is None or new is None or number is None:
                return x, edge
            if x.dim() > 2 and edge.dim() == 2 and not graph.leading:
                edge = edge.expand(*x.shape[:-2], *edge.shape)
            return x, edge.reshape(-1, edge.shape[-1]).index_copy(0, number, new).reshape(edge.shape)
        step, new = self._attend(x, graph, edge)
        return self._tokens(x, step), edge if new is None else new

    def _attend(
        self, x: Tensor, graph: TokenGraph, edge: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The step of the tokens, and the new edge rows (``None``: as they are)."""
        attention = self.attention.attention if isinstance(self.attention, SSA) else self.attention
        normed = None if edge is None or self.edge_norm1 is None else self.edge_norm1(edge)
        step, edge_step = attention(self.norm1(x), graph, normed, **options)
        if edge is None or edge_step is None or self.edge_norm2 is None or self.edge_feed_forward is None:
            return step, None
        edge = edge + edge_step
        return step, edge + self.edge_feed_forward(self.edge_norm2(edge))

    def _tokens(self, x: Tensor, step: Tensor) -> Tensor:
        x = x + self.dropout(step)
        return x + self.dropout(self.feed_forward(self.norm2(x)))
