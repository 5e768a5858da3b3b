"""Paths of up to T hops, discounted by their length."""

from __future__ import annotations

from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.propagate._gamma import check_number, rows_of, shown
from graphattn.propagate._series import series
from graphattn.propagate.base import PROPAGATORS, Propagator
from graphattn.propagate.operator import AttentionOperator

__all__ = ["Neumann"]


@PROPAGATORS.register("neumann")
class Neumann(Propagator):
    """:math:`y = \\sum_{k=1}^{T} \\gamma^k A^k v`, the truncated Neumann series of :class:`~graphattn.propagate.Katz`.

    Roffo et al., "Self-Attention And Beyond the Infinite" (2026), eqs. 3-4 with one operator for all layers. Always
    finite, whatever the spectral radius; the gradient is that of this sum, exactly, with O(log T) stored states (see
    :func:`graphattn.propagate._series.series`). It never waits for the device and compiles.

    Args:
        hops: T, at least 1.
        gamma: Discount, at least 0; or a tensor ``[]`` or ``[H]``, one for each head, with a gradient.
        include_self: Start at k = 0, the values themselves.

    Raises:
        ArgumentError: If an argument is out of range.
        ArgumentTypeError: If gamma is neither a number nor a floating tensor.
    """

    def __init__(self, hops: int = 4, gamma: float | Tensor = 0.95, *, include_self: bool = False) -> None:
        super().__init__()
        if isinstance(hops, bool) or not isinstance(hops, int) or hops < 1:
            raise ArgumentError(f"hops must be an integer of at least 1, got {hops!r}")
        self.hops, self.include_self = hops, include_self
        self.gamma = check_number("gamma", gamma, 0.0)

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        """See :meth:`Propagator.forward`; square graphs only."""
        y = series(operator, values, [rows_of(operator, self.gamma, values)] * self.hops)
        return values + y if self.include_self else y

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"hops={self.hops}, gamma={shown(self.gamma)}, include_self={self.include_self}"
