"""A walk along the weights that returns to its start now and then."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphattn.propagate._gamma import check_number, rows_of, shown
from graphattn.propagate.base import PROPAGATORS
from graphattn.propagate.implicit import ImplicitPropagator
from graphattn.propagate.operator import AttentionOperator

__all__ = ["PersonalizedPageRank"]


@PROPAGATORS.register("pagerank")
class PersonalizedPageRank(ImplicitPropagator):
    """:math:`y = \\alpha (I - (1 - \\alpha) A)^{-1} v`, which solves :math:`y = \\alpha v + (1 - \\alpha) A y`.

    Klicpera et al., "Predict then Propagate" (ICLR 2019), eq. 3, on any weights; with rows that sum to 1 (softmax), so
    do the rows of the whole. PageRank itself, a distribution over tokens, is this on the transition matrix
    :math:`A_{ts} = 1 / d^{out}_s` and a personalisation vector (networkx's alpha is :math:`1 - \\alpha`; a token
    without an out-edge keeps nothing here).

    Args:
        alpha: Probability of returning, in [0, 1]; or a tensor ``[]`` or ``[H]``, one for each head, with a gradient.
        **options: Of :class:`ImplicitPropagator`.

    Raises:
        ArgumentError: If an argument is out of range.
        ArgumentTypeError: If alpha is neither a number nor a floating tensor.
    """

    def __init__(self, alpha: float | Tensor = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, 0.0, 1.0)

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        """See :meth:`Propagator.forward`; square graphs only, and those on which the series converges."""
        alpha = rows_of(operator, self.alpha, values)
        return self.solve(operator, alpha * values, 1 - alpha)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"alpha={shown(self.alpha)}, {super().extra_repr()}"
