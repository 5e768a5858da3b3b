"""The block that holds a local layer and a global mechanism."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.nn.feed_forward import FeedForward
from graphattn.nn.norm import make_norm

__all__ = ["GPSBlock"]


class GPSBlock(nn.Module):
    """A local layer on one graph and a mechanism on another, side by side, then a feed-forward network (Rampášek et
    al., arXiv 2205.12454, eqs. 2-5).

    .. math::
        x^L = \\mathrm{norm}(x + \\mathrm{drop}(\\ell(x, e))), \\quad
        x^G = \\mathrm{norm}(x + \\mathrm{drop}(g(x))), \\quad
        x' = \\mathrm{norm}\\big(x^L + x^G + \\mathrm{FFN}(x^L + x^G)\\big)

    With ``gated``, :math:`\\ell` is followed by a norm and a ReLU of its own, and edge rows are updated likewise,
    :math:`e + \\mathrm{drop}(\\mathrm{ReLU}(\\mathrm{norm}(\\hat e)))`: the layer of GatedGCN (arXiv 1711.07553).

    Args:
        width: Channels of token (and edge) rows.
        local: Called as ``local(x, graph, edge)``, returns new token rows and new edge rows or ``None``; ``None``: no
            local layer.
        attention: Any mechanism; ``None``: no global part.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        dropout: On the outputs of both parts and in the feed-forward network.
        gated: See above.
        edge_output: With ``gated``: whether edge rows are updated.

    Raises:
        ArgumentError: If there is neither a local layer nor a mechanism.
    """

    def __init__(
        self,
        width: int,
        local: nn.Module | None,
        attention: nn.Module | None,
        *,
        norm: str = "batch",
        dropout: float = 0.0,
        gated: bool = False,
        edge_output: bool = False,
    ) -> None:
        super().__init__()
        if local is None and attention is None:
            raise ArgumentError("local and attention must not both be None")
        self.local, self.attention = local, attention
        self.norm_local = make_norm(norm, width) if local is not None else None
        self.norm_attention = make_norm(norm, width) if attention is not None else None
        self.gate = nn.Sequential(make_norm(norm, width), nn.ReLU()) if gated else nn.Identity()
        self.edge_gate = nn.Sequential(make_norm(norm, width), nn.ReLU()) if gated and edge_output else None
        self.feed_forward = FeedForward(width, dropout=dropout)
        self.norm_out = make_norm(norm, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        graph: TokenGraph,
        edge: Tensor | None = None,
        attention_graph: TokenGraph | None = None,
        attention_edge: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One block.

        Args:
            x: ``[N, width]`` token rows.
            graph: What the local layer runs on.
            edge: ``[E, width]`` its edge rows.
            attention_graph: What the mechanism runs on; default: ``graph``.
            attention_edge: ``[E', width]`` its edge rows, for a mechanism that uses them.

        Returns:
            New token rows and, where they are updated, new edge rows; else the given ones.
        """
        parts = []
        if self.local is not None and self.norm_local is not None:
            step, edge_step = self.local(x, graph, edge)
            parts.append(self.norm_local(x + self.dropout(self.gate(step))))
            if self.edge_gate is not None and edge is not None and edge_step is not None:
                edge = edge + self.dropout(self.edge_gate(edge_step))
        if self.attention is not None and self.norm_attention is not None:
            step, _ = self.attention(x, graph if attention_graph is None else attention_graph, attention_edge)
            parts.append(self.norm_attention(x + self.dropout(step)))
        x = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return self.norm_out(x + self.dropout(self.feed_forward(x))), edge
