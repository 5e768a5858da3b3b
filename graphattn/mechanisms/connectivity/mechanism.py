"""Pixel-connectivity attention as a mechanism on any token graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.attention import attend
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import Mechanism, check_edge, check_rows, drop_seed, head_width
from graphattn.normalize.mutual import Mutual

__all__ = ["Connectivity"]


class Connectivity(Mechanism):
    """Tokens take the rows of those they are connected to: an edge counts as far as both of its ends want it.

    .. math::
        a_{st} = \\frac{q_t^\\top k_s}{\\sqrt{d}} + b_h + B e_{st}, \\qquad
        w_{st} = \\sigma(a_{st})\\, \\sigma(a_{ts}), \\qquad
        y_t \\leftarrow \\frac{y_t + \\sum_s w_{st}\\, y_s}{1 + \\sum_s w_{st}}, \\qquad
        x' = O y

    where y begins as v and takes ``hops`` steps.

    The independent sigmoids and the mutual agreement of ConnNet (arXiv 1804.07836) with the score of an edge taken from
    the features of its ends, so that it runs on any graph (ours). On a grid of pixels ConnNet predicts the scores of a
    pixel's edges by a convolution instead: its cube is a ready score, ``attend(graph, None, None, v,
    score=cube_to_edges(graph, cube).unsqueeze(-1), normalizer="mutual")``. Edges without a reverse have weight 0.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: Channels of an edge row; ``None``: no edge rows. They add one number for each head to the score.
        hops: Steps of propagation along the same weights.
        bias: Give the projections a bias.
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the weights, the same at every hop.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        hops: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.width, self.heads, self.head_width = width, heads, head_width(width, heads)
        if isinstance(hops, bool) or not isinstance(hops, int) or hops < 1:
            raise ArgumentError(f"hops must be a positive number, got {hops!r}")
        self.hops, self.attention_dropout, self.backend = hops, attention_dropout, backend
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.score_bias = nn.Parameter(torch.zeros(heads))
        self.edge = nn.Linear(edge_width, heads, bias=False) if edge_width else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width, bias)
        self.mutual = Mutual(one_way="zero")

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        for part in (self.qkv, self.out, self.edge):
            if part is not None:
                part.reset_parameters()
        nn.init.zeros_(self.score_bias)

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`~graphattn.mechanisms.Mechanism.forward`; the second result is ``None``."""
        check_rows(x, graph, self.width)
        check_edge(edge, self.edge)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width)).unbind(-3)
        p, seed = drop_seed(self, self.attention_dropout, x)
        # The bias as one more channel of the product, whatever graph each head has.
        scale, ones = self.head_width**-0.5, torch.ones_like(v[..., :1])
        q = torch.cat([q, self.score_bias.to(q.dtype).unsqueeze(-1).expand_as(ones)], -1)
        k = torch.cat([k, ones / scale], -1)
        for _ in range(self.hops):
            out = attend(
                *(graph, q, k, torch.cat([v, ones], -1)),
                normalizer=self.mutual,
                edge_bias=None if self.edge is None or edge is None else self.edge(edge),
                scale=scale,
                dropout_p=p,
                dropout_seed=seed,
                backend=self.backend,
            )
            assert isinstance(out, Tensor)
            v = (v + out[..., :-1]) / (1 + out[..., -1:])
        return self.out(self.dropout(v.flatten(-2))), None

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, heads={self.heads}, hops={self.hops}"
