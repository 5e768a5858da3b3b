"""The definition by plain indexing, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels.segment_sum.impl.reference import spread
from graphattn_kernels.structure import Structure

__all__ = ["sddmm"]


def sddmm(structure: Structure, a: Tensor, b: Tensor, channels: bool) -> Tensor:
    """See the API."""
    product = spread(structure, a) * spread(structure.T, b)
    return product if channels else product.sum(-1)
