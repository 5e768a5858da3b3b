"""Each target's scores, divided by their sum."""

from __future__ import annotations

from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.normalize.base import NORMALIZERS, Normalizer
from graphattn_kernels import segment_sum, spread

__all__ = ["Sum"]


@NORMALIZERS.register("sum")
class Sum(Normalizer):
    """:math:`w_{eh} = s_{eh} / \\max\\big(\\sum_{e' \\to t} s_{e'h},\\, \\varphi\\big)`.

    For scores that are not negative: the normaliser of linear attention. Weights of a target sum to 1 where its scores
    sum to the floor or more (L2ViT takes a floor of 100), to less elsewhere. A target whose scores are all 0 gets
    weights 0 and finite gradients.

    Args:
        floor: The least that scores are divided by.

    Raises:
        ArgumentError: If floor is not positive.
    """

    def __init__(self, floor: float = 1e-6) -> None:
        super().__init__()
        if not floor > 0:
            raise ArgumentError(f"floor must be positive, got {floor}")
        self.floor = floor

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        total = segment_sum(graph.structure, scores, backend=backend)
        return scores * spread(graph.structure, self.factor(total), backend=backend)

    def factor(self, total: Tensor) -> Tensor:
        """What the scores of a target are multiplied with, given their sum."""
        return 1 / total.clamp(min=self.floor)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"floor={self.floor:g}"
