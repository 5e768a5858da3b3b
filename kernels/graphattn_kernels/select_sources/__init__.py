"""The best sources of each target, as packed bits or as lists."""

from graphattn_kernels.select_sources.api import select_bits, select_lists

__all__ = ["select_bits", "select_lists"]
