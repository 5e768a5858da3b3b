"""A weighted token graph as a linear operator: all that a propagator may see of it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn_kernels import segment_sum, spmm

__all__ = ["AttentionOperator", "EdgeOperator"]


class AttentionOperator(Protocol):
    """The attention matrix :math:`A` (targets by sources, one for each head), never as a matrix."""

    @property
    def num_targets(self) -> int:
        """Rows of A."""
        ...

    @property
    def num_sources(self) -> int:
        """Columns of A."""
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


class EdgeOperator:
    """The operator of given edge weights.

    Args:
        graph: The token graph.
        weights: ``[E, H]`` in the caller's edge order.
        backend: Which kernels to use.
    """

    def __init__(self, graph: TokenGraph, weights: Tensor, backend: str = "auto") -> None:
        self._structure = graph.structure
        self._weights = weights
        self._backend = backend

    @property
    def num_targets(self) -> int:
        """Rows of A."""
        return self._structure.num_targets

    @property
    def num_sources(self) -> int:
        """Columns of A."""
        return self._structure.num_sources

    def matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.matmul`."""
        return spmm(self._structure, self._weights, x, backend=self._backend)

    def t_matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.t_matmul`."""
        return spmm(self._structure.T, self._weights, x, backend=self._backend)

    def row_sum(self) -> Tensor:
        """See :meth:`AttentionOperator.row_sum`."""
        return segment_sum(self._structure, self._weights, backend=self._backend)
