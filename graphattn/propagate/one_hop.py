"""The ordinary attention step."""

from __future__ import annotations

from torch import Tensor

from graphattn.propagate.base import PROPAGATORS, Propagator
from graphattn.propagate.operator import AttentionOperator

__all__ = ["OneHop"]


@PROPAGATORS.register("one_hop")
class OneHop(Propagator):
    """:math:`y = A v`: every target reads its sources once."""

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        """See :meth:`Propagator.forward`."""
        return operator.matmul(values)
