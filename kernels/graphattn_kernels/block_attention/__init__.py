"""Softmax attention over block-sparse tiles of a graph, with a bit for each pair of a partly filled tile."""

from graphattn_kernels.block_attention.api import block_attention

__all__ = ["block_attention"]
