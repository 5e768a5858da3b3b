"""One number for each member of the graph and head: the Frobenius norm of its scores."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.normalize.base import NORMALIZERS, Normalizer
from graphattn_kernels import segment_sum, spread

__all__ = ["Frobenius", "safe_sqrt"]


@NORMALIZERS.register("frobenius")
class Frobenius(Normalizer):
    """:math:`w_{eh} = s_{eh} / (\\lVert s_h \\rVert_F + \\varepsilon)`, the norm over all edges of the edge's member.

    Roffo et al., "Self-Attention And Beyond the Infinite" (2026), eq. 1, after a score that is not negative
    (``"relu_dot"``). The weights of a member have a norm below 1, so (where no edge is there twice) their spectral
    radius is below 1 and every series in them converges; rows need not sum to 1. Members of a batch and copies of a
    graph never share a norm. Where all scores are 0, weights and gradients are 0.

    Args:
        eps: Added to the norm.
        rescale: Multiply by the square root of the member's number of targets, which keeps the size of the output when
            the number of tokens changes; the norm is then no longer below 1. Not in the paper.

    Raises:
        ArgumentError: If eps is not positive.
    """

    def __init__(self, eps: float = 1e-6, rescale: bool = False) -> None:
        super().__init__()
        if not eps > 0:
            raise ArgumentError(f"eps must be positive, got {eps}")
        self.eps, self.rescale = eps, rescale

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        members, structure = Members.of_targets(graph), graph.structure
        squares = members.sum(segment_sum(structure, scores.square(), backend=backend), backend)
        factor = self.factor(squares, members)
        return scores * spread(structure, members.spread(factor, backend), backend=backend)

    def factor(self, squares: Tensor, members: Members) -> Tensor:
        """What scores are multiplied with, ``[M, H]``, given the sum of their squares ``[M, H]``."""
        factor = 1 / (safe_sqrt(squares) + self.eps)
        if self.rescale:
            factor = factor * members.ptr.diff().to(factor.dtype).sqrt().unsqueeze(1)
        return factor

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"eps={self.eps:g}" + (", rescale=True" if self.rescale else "")


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 and not infinite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)
