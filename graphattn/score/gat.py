"""The score of GAT."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from graphattn.score.base import SCORES, Score

__all__ = ["GATScore"]


@SCORES.register("gat")
class GATScore(Score):
    """:math:`s_{eh} = \\operatorname{LeakyReLU}(q_{th} + k_{sh} + g_{eh})`, one number a head for each of the three.

    Veličković et al., "Graph Attention Networks" (ICLR 2018), eq. 3: there, :math:`q_{th} = a_h^\\top W_h x_t` and
    :math:`k_{sh} = b_h^\\top W_h x_s` are two linear maps of a token to one channel, ``q [..., T, H, 1]`` and
    ``k [..., S, H, 1]``; :math:`g` is ``edge_gate [..., E, H, 1]`` of :func:`graphattn.attend`, where there is one.
    With more channels, their scores add up.

    Args:
        negative_slope: Of the LeakyReLU.
    """

    fused: ClassVar[str | None] = "additive"

    def __init__(self, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        """See :meth:`Score.edge`."""
        total = q_target + k_source if edge is None else q_target + k_source + edge
        return F.leaky_relu(total, self.negative_slope).sum(-1)

    def additive(self) -> tuple[Tensor | None, float | None]:
        """See :meth:`Score.additive`."""
        return None, self.negative_slope
