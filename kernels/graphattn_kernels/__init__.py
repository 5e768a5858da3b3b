"""Sparse operations on raw tensors; torch is the only import.

Every operation takes a :class:`Structure` (a graph as two sorted views of its edges; ``block_attention``:
:class:`Blocks`, the same as tiles) and dense tensors, is registered with ``torch.library`` (compile, export) and has a
gradient without atomics.
"""

from graphattn_kernels.block_attention import block_attention
from graphattn_kernels.blocks import Blocks, BlockView
from graphattn_kernels.csr_attention import csr_attention
from graphattn_kernels.rank_one_attention import rank_one_attention
from graphattn_kernels.relu_attention import relu_attention
from graphattn_kernels.sddmm import sddmm
from graphattn_kernels.segment_softmax import segment_softmax
from graphattn_kernels.segment_sum import segment_sum, spread
from graphattn_kernels.spmm import spmm
from graphattn_kernels.structure import Structure, View

__all__ = [
    "BlockView",
    "Blocks",
    "Structure",
    "View",
    "block_attention",
    "csr_attention",
    "rank_one_attention",
    "relu_attention",
    "sddmm",
    "segment_softmax",
    "segment_sum",
    "spmm",
    "spread",
]
