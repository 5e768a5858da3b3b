"""The sparse operations on raw tensors, for those who want them without the library above."""

from graphattn_kernels import (
    Blocks,
    BlockView,
    Structure,
    View,
    block_attention,
    csr_attention,
    sddmm,
    segment_softmax,
    segment_sum,
    spmm,
    spread,
)

__all__ = [
    "BlockView",
    "Blocks",
    "Structure",
    "View",
    "block_attention",
    "csr_attention",
    "sddmm",
    "segment_softmax",
    "segment_sum",
    "spmm",
    "spread",
]
