"""The definition, dense and differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.segment_sum.impl.reference import segment_sum, spread
from graphattn_kernels.structure import Structure

__all__ = ["spmm"]


def spmm(structure: Structure, weights: Tensor, values: Tensor) -> Tensor:
    """See the API."""
    wide = accumulate_dtype(values.dtype)
    weights = (weights if weights.dim() == 3 else weights.unsqueeze(-1)).to(wide)
    return segment_sum(structure, weights * spread(structure.T, values).to(wide)).to(values.dtype)
