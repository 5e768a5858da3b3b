"""The definition by plain indexing, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.segment_sum.impl.reference import spread
from graphattn_kernels.structure import Structure

__all__ = ["sddmm"]


def sddmm(structure: Structure, a: Tensor, b: Tensor, channels: bool) -> Tensor:
    """See the API."""
    wide = accumulate_dtype(a.dtype)
    product = spread(structure, a).to(wide) * spread(structure.T, b).to(wide)
    return (product if channels else product.sum(-1)).to(a.dtype)
