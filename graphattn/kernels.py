"""The sparse operations on raw tensors, for those who want them without the library above."""

from graphattn_kernels import (
    Structure,
    View,
    csr_attention,
    sddmm,
    segment_softmax,
    segment_sum,
    spmm,
    spread,
)

__all__ = ["Structure", "View", "csr_attention", "sddmm", "segment_softmax", "segment_sum", "spmm", "spread"]
