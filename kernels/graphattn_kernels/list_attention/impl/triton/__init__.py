"""Triton: keys gathered through the lists, on tensor cores; gradients of gathered rows summed through the transpose."""

from graphattn_kernels.list_attention.impl.triton.launch import backward, forward

__all__ = ["backward", "forward"]
