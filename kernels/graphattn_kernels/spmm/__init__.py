"""Sparse-dense product: move values along weighted edges."""

from graphattn_kernels.spmm.api import spmm

__all__ = ["spmm"]
