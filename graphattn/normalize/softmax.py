"""Softmax over each target's in-edges."""

from __future__ import annotations

from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.normalize.base import NORMALIZERS, Normalizer
from graphattn_kernels import segment_softmax

__all__ = ["Softmax"]


@NORMALIZERS.register("softmax")
class Softmax(Normalizer):
    """:math:`w_{eh} = \\exp s_{eh} / \\sum_{e' \\to t} \\exp s_{e'h}` over the in-edges of the edge's target."""

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        return segment_softmax(graph.structure, scores, backend=backend)[0]
