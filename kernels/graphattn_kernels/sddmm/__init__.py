"""Sampled dense-dense product: one number, or one row of channels, for each edge."""

from graphattn_kernels.sddmm.api import sddmm

__all__ = ["sddmm"]
