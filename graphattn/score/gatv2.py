"""The score of GATv2."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.errors import ArgumentError
from graphattn.score.base import SCORES, Score

__all__ = ["GATv2Score"]


@SCORES.register("gatv2")
class GATv2Score(Score):
    """:math:`s_{eh} = a_h^\\top \\operatorname{LeakyReLU}(q_{th} + k_{sh} + g_{eh})`, with :math:`a` learned.

    Brody, Alon & Yahav, "How Attentive are Graph Attention Networks?" (ICLR 2022), eq. 7; :math:`g` is the edge's own
    row (``edge_gate`` of :func:`graphattn.attend`), where there is one.

    Args:
        heads: H.
        channels: D, channels of a head.
        negative_slope: Of the LeakyReLU.
        att: ``[H, D]``, the vector a where somebody else holds it; default: a parameter of this score.

    Raises:
        ArgumentError: If ``att`` is not ``[H, D]``.
    """

    fused: ClassVar[str | None] = "additive"

    def __init__(self, heads: int, channels: int, negative_slope: float = 0.2, *, att: Tensor | None = None) -> None:
        super().__init__()
        if att is not None and att.shape != (heads, channels):
            raise ArgumentError(f"att must have shape [{heads}, {channels}], got {list(att.shape)}")
        self.negative_slope = negative_slope
        self.att = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, channels))) if att is None else att

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        """See :meth:`Score.edge`."""
        total = q_target + k_source if edge is None else q_target + k_source + edge
        return (F.leaky_relu(total, self.negative_slope) * self.att).sum(-1)

    def additive(self) -> tuple[Tensor | None, float | None]:
        """See :meth:`Score.additive`."""
        return self.att, self.negative_slope
