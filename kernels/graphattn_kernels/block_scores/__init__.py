"""What each block of queries thinks of each key."""

from graphattn_kernels.block_scores.api import block_scores
from graphattn_kernels.block_scores.impl.reference import block_means

__all__ = ["block_means", "block_scores"]
