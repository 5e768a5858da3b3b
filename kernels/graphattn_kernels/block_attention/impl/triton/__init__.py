"""Triton: tiles on tensor cores, long rows cut into parts, weights computed again in the backward pass."""

from graphattn_kernels.block_attention.impl.triton.launch import backward, forward

__all__ = ["backward", "forward"]
