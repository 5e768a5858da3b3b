"""Each edge for itself."""

from __future__ import annotations

from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.normalize.base import NORMALIZERS, Normalizer

__all__ = ["Sigmoid"]


@NORMALIZERS.register("sigmoid")
class Sigmoid(Normalizer):
    """:math:`w_{eh} = 1 / (1 + \\exp(-s_{eh}))`: edges do not compete; a target's weights need not sum to one."""

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        return scores.sigmoid()
