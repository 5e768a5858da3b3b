"""One-hop attention over a complete graph with the weights ReLU(scores) / their Frobenius norm."""

from graphattn_kernels.relu_attention.api import relu_attention

__all__ = ["relu_attention"]
