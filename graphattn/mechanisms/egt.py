"""Edge-augmented attention (Hussain, Zaki & Subramanian, "Global Self-Attention as a Replacement for Graph
Convolution", KDD 2022, arXiv 2108.03348)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import Mechanism, Transform, check_edge, check_rows, head_width
from graphattn.mechanisms.parts.gated_softmax import gated_softmax

__all__ = ["EGTAttention"]


class EGTAttention(Mechanism):
    """Attention of the edge-augmented graph transformer: edge rows add to the score and gate the weight, and the score
    makes new edge rows.

    .. math::
        H_{ts} = \\operatorname{clip}\\Big(\\tfrac{1}{\\sqrt d} q_t^\\top k_s\\Big) + E_{ts}, \\qquad
        A_{ts} = \\operatorname{softmax}_s(H_{ts})\\, \\sigma(G_{ts}), \\qquad
        x'_t = O_h\\Big[\\log\\big(1 + \\sum_s \\sigma(G_{ts})\\big) \\sum_s A_{ts} v_s\\Big], \\qquad
        e'_{ts} = O_e H_{ts}

    for each head, with E and G linear in the edge row (the released code, shamim-hussain/egt and egt_pytorch). It runs
    on any graph; on a complete one, as in the paper, by dense matrices. Without edge rows there are no gates (they are
    1), and the scaler is the logarithm of the degree.

    On a sub-graph that was drawn (:class:`~graphattn.mechanisms.SSA`) the sum of gates runs over what is left, and the
    scaler would shift between training and evaluation: it is divided by the probability of each edge.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: Channels of an edge row; ``None``: no edge rows.
        clamp: Bound on the product, 5 as published; ``None``: none.
        degree_scaler: Multiply by the logarithm of the summed gates (published: yes).
        virtual_tokens: The first so many tokens of each member are virtual nodes: their scaler is 1.
        edge_output: Return new edge rows, where there are edge rows.
        bias: Give the projections of queries, keys and values a bias.
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the weights.
        backend: See :func:`graphattn.attend`; ``"auto"`` takes dense matrices for a complete graph.
    """

    takes_transform = True
    takes_share = True

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        clamp: float | None = 5.0,
        degree_scaler: bool = True,
        virtual_tokens: int = 0,
        edge_output: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.width, self.heads, self.head_width = width, heads, head_width(width, heads)
        self.clamp, self.degree_scaler, self.virtual_tokens = clamp, degree_scaler, virtual_tokens
        self.attention_dropout, self.backend = attention_dropout, backend
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)
        self.edge = nn.Linear(edge_width, 2 * heads) if edge_width else None
        self.edge_out = nn.Linear(heads, edge_width) if edge_width and edge_output else None
        self.dropout = nn.Dropout(dropout)

    @property
    def reads_row_by_row(self) -> bool:  # type: ignore[override]
        """Whether a token can be computed alone: without new edge rows."""
        return self.edge_out is None

    def forward(
        self,
        x: Tensor,
        graph: TokenGraph,
        edge: Tensor | None = None,
        *,
        transform: Transform | None = None,
        share: float | Tensor = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Mechanism.forward`.

        Args:
            x: ``[..., N, width]``.
            graph: Square graph over the N tokens.
            edge: ``[E, edge_width]``, or with the leading dimensions of x that share the graph.
            transform: See :class:`~graphattn.mechanisms.Mechanism`.
            share: Probability with which each edge was drawn, a number or ``[E]``.
        """
        check_rows(x, graph, self.width, transform)
        check_edge(edge, self.edge)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width)).unbind(-3)
        if transform is not None:
            q, k, v = transform(q, k, v)
        bias = gate = None
        if self.edge is not None and edge is not None:
            bias, gate = self.edge(edge).chunk(2, dim=-1)
        found = gated_softmax(
            *(graph, q, k, v, bias, gate),
            clamp=self.clamp,
            share=share,
            dropout_p=self.attention_dropout if self.training else 0.0,
            backend=self.backend,
        )
        out = found.out
        if self.degree_scaler:
            scale = found.total.log1p()
            if self.virtual_tokens:
                scale = scale.masked_fill(self._virtual(graph).unsqueeze(-1), 1.0)
            out = out * scale.unsqueeze(-1).to(out.dtype)
        step = self.out(self.dropout(out.flatten(-2)))
        return step, None if self.edge_out is None else self.edge_out(found.scores)

    def _virtual(self, graph: TokenGraph) -> Tensor:
        """bool ``[T]``: the first tokens of each member."""
        place = torch.arange(graph.num_targets, device=graph.device)
        if graph.target_ptr is not None:
            place = place - graph.target_ptr[graph.target_batch]
        return place < self.virtual_tokens

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, heads={self.heads}, clamp={self.clamp}"
