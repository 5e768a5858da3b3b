"""Paths of any number of hops, discounted by their length: the sum of the Neumann series."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphattn.propagate._gamma import check_number, rows_of, shown
from graphattn.propagate.base import PROPAGATORS
from graphattn.propagate.implicit import ImplicitPropagator
from graphattn.propagate.operator import AttentionOperator

__all__ = ["Katz", "Resolvent"]


@PROPAGATORS.register("resolvent")
class Resolvent(ImplicitPropagator):
    """:math:`y = (I - \\gamma A)^{-1} v = \\sum_{k \\ge 0} \\gamma^k A^k v`.

    On ones, Katz's index of the targets, themselves included. A weight :math:`(F)_{ts}` of
    :math:`F = (I - \\gamma A)^{-1}` is the expected number of visits to s of a walk from t that stops with probability
    :math:`1 - \\gamma \\sum_s A_{ts}` in each step, where no row sum exceeds :math:`1 / \\gamma` (Roffo et al.,
    "Self-Attention And Beyond the Infinite", 2026).

    Args:
        gamma: Discount, at least 0; or a tensor ``[]`` or ``[H]``, one for each head, with a gradient. Its product with
            the spectral radius of the weights must be below 1.
        include_self: Start at k = 0, the values themselves.
        **options: Of :class:`ImplicitPropagator`.

    Raises:
        ArgumentError: If an argument is out of range.
        ArgumentTypeError: If gamma is neither a number nor a floating tensor.
    """

    def __init__(self, gamma: float | Tensor = 0.95, *, include_self: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.gamma, self.include_self = check_number("gamma", gamma, 0.0), include_self

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        """See :meth:`Propagator.forward`; square graphs only, and those on which the series converges."""
        y = self.solve(operator, values, rows_of(operator, self.gamma, values))
        return y if self.include_self else y - values

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"gamma={shown(self.gamma)}, include_self={self.include_self}, {super().extra_repr()}"


@PROPAGATORS.register("katz")
class Katz(Resolvent):
    """:math:`y = ((I - \\gamma A)^{-1} - I) v = \\sum_{k \\ge 1} \\gamma^k A^k v`: every path but that of no hop.

    With weights from a ReLU dot score and the Frobenius norm, Roffo et al. (2026), eq. 4. On ones, Katz's centrality
    less one.

    Args:
        gamma: See :class:`Resolvent`.
        **options: Of :class:`ImplicitPropagator`.
    """

    def __init__(self, gamma: float | Tensor = 0.95, **options: Any) -> None:
        super().__init__(gamma, include_self=False, **options)
