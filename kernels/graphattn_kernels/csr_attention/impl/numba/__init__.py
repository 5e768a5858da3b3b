"""Numba, for CPU: rows in parallel, online softmax, no buffer of edges times channels."""

from graphattn_kernels.csr_attention.impl.numba.launch import backward, forward

__all__ = ["backward", "forward"]
