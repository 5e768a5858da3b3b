"""The gated graph convolution (Bresson & Laurent, "Residual Gated Graph ConvNets", 2017) as attention."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import Mechanism, check_copies, check_rows, head_width
from graphattn_kernels import segment_sum, spmm, spread

__all__ = ["GatedGCN"]

_EPSILON = 1e-6


class GatedGCN(Mechanism):
    """An additive score for each channel, sigmoids that sum to one over a token's in-edges, one hop.

    .. math::
        \\hat e_{st} = D x_t + E x_s + C e_{st}, \\qquad
        x'_t = A x_t + \\frac{\\sum_s \\sigma(\\hat e_{st}) \\odot B x_s}{\\sum_s \\sigma(\\hat e_{st}) + \\epsilon}

    (Dwivedi et al., "Benchmarking Graph Neural Networks", arXiv 2003.00982, appendix on GatedGCN, after arXiv
    1711.07553; :math:`\\epsilon = 10^{-6}` as in the released code.) The new edge rows are :math:`\\hat e_{st}`. Norm,
    ReLU and residual are for the block around it.

    Args:
        width: Channels of a token row.
        heads: For the sake of the other mechanisms; must divide ``width``. Every channel has a gate of its own.
        edge_width: Channels of an edge row; ``None``: no edge rows.
        edge_output: Return new edge rows, ``[E, width]``, where there are edge rows.
        dropout: On the new token rows (published: in the block).
        attention_dropout: On the gates above the fraction (published: none).
        backend: Of the sparse operations, see :func:`graphattn.edge_weights`.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        edge_width: int | None = None,
        *,
        edge_output: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        head_width(width, heads)
        self.width, self.edge_output, self.backend = width, edge_output, backend
        self.tokens = nn.Linear(width, 4 * width)  # A, B, D and E in one product
        self.edge = nn.Linear(edge_width, width) if edge_width else None
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Mechanism.forward`."""
        check_rows(x, graph, self.width)
        check_copies(x, graph)
        needed = None if self.edge is None else [graph.num_edges, self.edge.in_features]
        given = None if edge is None else list(edge.shape)
        if given != needed:
            raise ArgumentError(f"edge must be {needed}, got {given}")
        structure, on = graph.structure, {"backend": self.backend}
        if graph.leading:  # more tokens of one graph
            rows = x.flatten(0, 1).unsqueeze(1)
        else:
            rows = x.flatten(0, -3).transpose(0, 1) if x.dim() > 2 else x.unsqueeze(1)  # [N, leading, width]
        root, value, target, source = self.tokens(rows).chunk(4, dim=-1)
        score = spread(structure, target, **on) + spread(structure.T, source, **on)
        if self.edge is not None and edge is not None:
            score = score + self.edge(edge).unsqueeze(1)
        gate = score.sigmoid()
        total = segment_sum(structure, gate, **on)
        step = root + spmm(structure, self.attention_dropout(gate), value, **on) / (total + _EPSILON)
        step = self.dropout(step.transpose(0, 1).reshape(x.shape))
        return step, score.squeeze(1) if self.edge is not None and self.edge_output else None

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}"
