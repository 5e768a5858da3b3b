"""What each block of queries thinks of each key."""

from graphattn_kernels.block_scores.api import block_scores

__all__ = ["block_scores"]
