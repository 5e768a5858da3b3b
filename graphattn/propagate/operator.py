"""A weighted token graph as a linear operator: all that a propagator may see of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn_kernels import segment_sum, spmm

__all__ = ["AttentionOperator", "EdgeOperator", "for_each_head"]


class AttentionOperator(Protocol):
    """The attention matrix :math:`A` (targets by sources, one for each head), never as a matrix.

    Rows are those of the folded call: N counts the tokens of all copies of the graph, H the heads of all entries that
    share a graph. All but :meth:`magnitude` and :meth:`bound` are differentiable with respect to whatever made the
    weights.
    """

    @property
    def num_targets(self) -> int:
        """Rows of A."""
        ...

    @property
    def num_sources(self) -> int:
        """Columns of A."""
        ...

    @property
    def members(self) -> Members:
        """The targets by member; A is block-diagonal over members."""
        ...

    def matmul(self, x: Tensor) -> Tensor:
        """:math:`A x`: ``[S, H, D]`` to ``[T, H, D]``."""
        ...

    def t_matmul(self, x: Tensor) -> Tensor:
        """:math:`A^T x`: ``[T, H, D]`` to ``[S, H, D]``."""
        ...

    def row_sum(self) -> Tensor:
        """:math:`A 1`: ``[T, H]``."""
        ...

    def magnitude(self) -> AttentionOperator:
        """:math:`|A|`, without gradient."""
        ...

    def bound(self) -> Tensor:
        """An upper bound of the spectral radius of each member and head, ``[M, H]``: the least of the largest row sum,
        the largest column sum and the Frobenius norm of :math:`|A|`. No gradient; square graphs only. May wait for
        the device."""
        ...

    def per_head(self, x: Tensor) -> Tensor:
        """A number for each head of the caller, ``[]`` or ``[H]``, as it multiplies rows: ``[1 or T, 1 or H, 1]``."""
        ...


def for_each_head(x: Tensor) -> Tensor:
    """:meth:`AttentionOperator.per_head` where nothing is folded."""
    if x.dim() > 1:
        raise ArgumentError(f"a number for each head must be [] or [H], got {list(x.shape)}")
    return x.reshape(1, -1, 1)


class EdgeOperator:
    """The operator of given edge weights.

    Args:
        graph: The token graph.
        weights: ``[E, H]`` in the caller's edge order.
        backend: Which kernels to use.
        per_head: :meth:`AttentionOperator.per_head`, where leading dimensions are folded.
    """

    def __init__(
        self,
        graph: TokenGraph,
        weights: Tensor,
        backend: str = "auto",
        per_head: Callable[[Tensor], Tensor] = for_each_head,
    ) -> None:
        self._structure = graph.structure
        self._weights = weights
        self._backend = backend
        self._graph = graph
        self.per_head = per_head

    @property
    def num_targets(self) -> int:
        """Rows of A."""
        return self._structure.num_targets

    @property
    def num_sources(self) -> int:
        """Columns of A."""
        return self._structure.num_sources

    @property
    def members(self) -> Members:
        """See :attr:`AttentionOperator.members`."""
        return Members.of_targets(self._graph)

    def matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.matmul`."""
        return spmm(self._structure, self._weights, x, backend=self._backend)

    def t_matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.t_matmul`."""
        return spmm(self._structure.T, self._weights, x, backend=self._backend)

    def row_sum(self) -> Tensor:
        """See :meth:`AttentionOperator.row_sum`."""
        return segment_sum(self._structure, self._weights, backend=self._backend)

    def magnitude(self) -> EdgeOperator:
        """See :meth:`AttentionOperator.magnitude`."""
        return EdgeOperator(self._graph, self._weights.detach().abs(), self._backend)

    @torch.no_grad()
    def bound(self) -> Tensor:
        """See :meth:`AttentionOperator.bound`."""
        size, members, backend = self._weights.detach().abs(), self.members, self._backend
        rows = segment_sum(self._structure, size, backend=backend)
        columns = segment_sum(self._structure.T, size, backend=backend)
        least = torch.minimum(members.max(rows), members.max(columns)).clamp(min=0.0)
        if self._graph.has_duplicates:  # they add up in A, so the squares of the edges say too little
            return least
        squares = members.sum(segment_sum(self._structure, size.square(), backend=backend), backend)
        return torch.minimum(least, squares.sqrt())
