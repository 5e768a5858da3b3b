"""Dot product, optionally gated in each channel by the edge."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from graphattn.score.base import SCORES, Score

__all__ = ["DotScore"]


@SCORES.register("dot")
class DotScore(Score):
    """:math:`s_{eh} = \\sum_d q_{thd} k_{shd} g_{ehd}`, scaled by :math:`1/\\sqrt{D}` unless told otherwise.

    Without a gate, Vaswani et al., "Attention Is All You Need" (2017), eq. 1; with one, Dwivedi & Bresson,
    "A Generalization of Transformer Networks to Graphs" (2020), eq. 12, which is a diagonal bilinear form and
    not an additive bias.
    """

    fused: ClassVar[str | None] = "dot"
    of_product: ClassVar[bool] = True

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        """See :meth:`Score.edge`."""
        product = q_target * k_source
        return (product if edge is None else product * edge).sum(-1)

    def from_product(self, product: Tensor) -> Tensor:
        """The product itself."""
        return product

    def default_scale(self, channels: int) -> float:
        """``1 / sqrt(D)``."""
        return channels**-0.5
