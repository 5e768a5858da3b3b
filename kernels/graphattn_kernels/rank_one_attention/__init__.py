"""Attention of rank one over a complete graph, in linear time: every target reads the same mixture of sources."""

from graphattn_kernels.rank_one_attention.api import rank_one_attention

__all__ = ["rank_one_attention"]
