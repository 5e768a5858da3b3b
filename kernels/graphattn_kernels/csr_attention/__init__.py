"""Dot-product attention over the edges of a graph: score, softmax and sum in one operator."""

from graphattn_kernels.csr_attention.api import csr_attention

__all__ = ["csr_attention"]
