"""The best sources of each target, as packed bits or as lists."""

from graphattn_kernels.select_sources.api import order_sources, select_bits, select_lists

__all__ = ["order_sources", "select_bits", "select_lists"]
