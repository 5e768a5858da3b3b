"""Triton: degree-sorted sliced rows, hubs cut into parts, weights computed again in the backward pass."""

from graphattn_kernels.csr_attention.impl.triton.launch import backward, forward

__all__ = ["backward", "forward"]
