"""Softmax over each target's in-edges."""

from graphattn_kernels.segment_softmax.api import segment_softmax

__all__ = ["segment_softmax"]
