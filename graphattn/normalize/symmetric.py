"""Scores divided by the square roots of the sums at both ends."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.normalize.base import NORMALIZERS, Normalizer
from graphattn_kernels import segment_sum, spread

__all__ = ["Symmetric"]


@NORMALIZERS.register("symmetric")
class Symmetric(Normalizer):
    """:math:`w_{eh} = s_{eh} / \\sqrt{d_{th}\\, d_{sh}}`, with the sums :math:`d_t` over the in-edges of the target and
    :math:`d_s` over the out-edges of the source, for scores that are not negative.

    :math:`D^{-1/2} A D^{-1/2}` of Kipf & Welling (ICLR 2017), eq. 2, on scores of 1; on a graph that is not symmetric,
    each end has its own sum. No singular value exceeds 1, whatever the scores. Where a sum is 0, so is the weight, with
    finite gradients.

    The sum over a source's out-edges is over later targets, too: on a causal graph, a target learns of the future.
    """

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        into = self.factor(segment_sum(graph.structure, scores, backend=backend))
        out = self.factor(segment_sum(graph.structure.T, scores, backend=backend))
        factor = spread(graph.structure, into, backend=backend) * spread(graph.structure.T, out, backend=backend)
        return scores * factor

    def factor(self, total: Tensor) -> Tensor:
        """What each end contributes, given its sum."""
        positive = total > 0
        return torch.where(positive, torch.where(positive, total, 1).rsqrt(), 0)
