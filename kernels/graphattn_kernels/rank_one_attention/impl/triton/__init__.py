"""Triton: two passes over the tokens in each direction, sums over programs in a fixed order."""

from graphattn_kernels.rank_one_attention.impl.triton.launch import backward, forward

__all__ = ["backward", "forward"]
