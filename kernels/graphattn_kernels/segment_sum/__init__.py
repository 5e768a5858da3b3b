"""Sum of edge rows over each owner, and its adjoint: the owner's row on each edge."""

from graphattn_kernels.segment_sum.api import segment_sum, spread

__all__ = ["segment_sum", "spread"]
