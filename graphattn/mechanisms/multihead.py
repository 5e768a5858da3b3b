"""Multi-head attention of the Transformer (Vaswani et al., "Attention Is All You Need", 2017) on any token graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.attention import attend
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import Mechanism, Transform, check_edge, check_rows, drop_seed, head_width

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Mechanism):
    """Scaled dot product, softmax over a token's in-edges, one hop.

    .. math::
        s_{st} = \\frac{q_t^\\top k_s}{\\sqrt{d}} + B e_{st}, \\qquad
        x'_t = O \\Big[\\sum_s \\operatorname{softmax}_s(s_{st})\\, v_s\\Big]

    Parameters, their names and their initial values are those of :class:`torch.nn.MultiheadAttention`, whose state
    dicts load as they are; on a complete graph the two are equal. Edge rows, where there are any, add one number for
    each head to the score (as the edge encoding of Graphormer does, arXiv 2106.05234, eq. 7, with a linear map for the
    mean over a path); no new edge rows come out.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: Channels of an edge row; ``None``: no edge rows.
        bias: Give the projections a bias.
        dropout: On the concatenated heads before the output projection (published: none).
        attention_dropout: On the attention weights.
        backend: See :func:`graphattn.attend`.
    """

    takes_transform = True
    reads_row_by_row = True

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.width, self.heads, self.head_width = width, heads, head_width(width, heads)
        self.attention_dropout, self.backend = attention_dropout, backend
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width)) if bias else None
        self.out_proj = nn.Linear(width, width, bias=bias)
        self.edge = nn.Linear(edge_width, heads, bias=False) if edge_width else None
        self.dropout = nn.Dropout(dropout)
        self._draw_in_projection()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        self.out_proj.reset_parameters()
        if self.edge is not None:
            self.edge.reset_parameters()
        self._draw_in_projection()

    def forward(
        self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None, *, transform: Transform | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Mechanism.forward`; the second result is ``None``."""
        check_rows(x, graph, self.width, transform)
        check_edge(edge, self.edge)
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_width)).unbind(-3)
        if transform is not None:
            q, k, v = transform(q, k, v)
        p, seed = drop_seed(self, self.attention_dropout, x)
        bias = None if self.edge is None or edge is None else self.edge(edge)
        out = attend(graph, q, k, v, edge_bias=bias, dropout_p=p, dropout_seed=seed, backend=self.backend)
        assert isinstance(out, Tensor)
        return self.out_proj(self.dropout(out.flatten(-2))), None

    def _draw_in_projection(self) -> None:
        # In this order a seed gives the values that it gives torch.nn.MultiheadAttention.
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, heads={self.heads}"
