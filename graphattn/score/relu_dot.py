"""Dot product without its negative half."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from graphattn.score.base import SCORES
from graphattn.score.dot import DotScore

__all__ = ["ReluDotScore"]


@SCORES.register("relu_dot")
class ReluDotScore(DotScore):
    """:math:`s_{eh} = \\max\\big(0, \\sum_d q_{thd} k_{shd} g_{ehd}\\big)`, scaled as the dot score is.

    The non-negative adjacency of Roffo et al., "Self-Attention And Beyond the Infinite" (2026), eq. 1, where the scale
    cancels in the norm. A bias comes after the maximum: with one, a score may be negative.
    """

    of_product: ClassVar[bool] = True

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        """See :meth:`Score.edge`."""
        return super().edge(q_target, k_source, edge).relu()

    def from_product(self, product: Tensor) -> Tensor:
        """Its positive part."""
        return product.relu()
