"""The score of GATv2."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """

    fused: ClassVar[str | None] = "additive"

    def __init__(self, heads: int, channels: int, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.att = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, channels)))

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        """See :meth:`Score.edge`."""
        total = q_target + k_source if edge is None else q_target + k_source + edge
        return (F.leaky_relu(total, self.negative_slope) * self.att).sum(-1)

    def additive(self) -> tuple[Tensor | None, float | None]:
        """See :meth:`Score.additive`."""
        return self.att, self.negative_slope
