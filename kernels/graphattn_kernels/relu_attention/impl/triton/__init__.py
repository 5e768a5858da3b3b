"""Triton: tiles on tensor cores, the norm as a sum over programs, weights computed again in the backward pass."""

from graphattn_kernels.relu_attention.impl.triton.launch import backward, forward

__all__ = ["backward", "forward"]
