"""Attention in which each block of targets reads one list of sources."""

from graphattn_kernels.list_attention.api import list_attention

__all__ = ["list_attention"]
