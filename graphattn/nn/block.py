"""The block that holds a mechanism."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.graph import TokenGraph
from graphattn.mechanisms import Mechanism
from graphattn.nn.feed_forward import FeedForward
from graphattn.nn.norm import make_norm

__all__ = ["Block"]


class Block(nn.Module):
    """Attention, residual, norm, feed-forward, residual, norm (post-norm; Dwivedi & Bresson 2020, eqs. 4-7).

    Edge rows, where the mechanism returns them, take a path of the same form with weights of its own (eqs. 13-15).

    Args:
        attention: Any mechanism.
        width: Channels of token (and edge) rows.
        edges: Whether there are edge rows.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        residual: Add the input of each half to its output.
        dropout: In the feed-forward networks.
    """

    def __init__(
        self,
        attention: Mechanism,
        width: int,
        *,
        edges: bool = False,
        norm: str = "batch",
        residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.tokens = _Path(width, norm, residual, dropout)
        self.edges = _Path(width, norm, residual, dropout) if edges else None

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """New token rows ``[N, width]`` and edge rows ``[E, width]`` (or ``None``)."""
        token_step, edge_step = self.attention(x, graph, edge)
        x = self.tokens(x, token_step)
        if self.edges is not None and edge is not None and edge_step is not None:
            edge = self.edges(edge, edge_step)
        return x, edge

    def freeze_edge_output(self) -> None:
        """Freeze what makes new edge rows, for a last block, whose edge rows nobody reads.

        The published networks have these parameters. They never get a gradient, and a distributed run would wait
        for it.
        """
        for part in (self.edges, getattr(self.attention, "edge_out", None)):
            if part is not None:
                part.requires_grad_(False)


class _Path(nn.Module):
    """What happens to rows after attention has spoken."""

    def __init__(self, width: int, norm: str, residual: bool, dropout: float) -> None:
        super().__init__()
        self.residual = residual
        self.norm1 = make_norm(norm, width)
        self.feed_forward = FeedForward(width, dropout=dropout)
        self.norm2 = make_norm(norm, width)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        x = self.norm1(x + step if self.residual else step)
        step = self.feed_forward(x)
        return self.norm2(x + step if self.residual else step)
