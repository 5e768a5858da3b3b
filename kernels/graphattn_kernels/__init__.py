"""Sparse operations on raw tensors; torch is the only import.

Every operation takes a :class:`Structure` (a graph as two sorted views of its edges; ``block_attention``:
:class:`Blocks`, the same as tiles) and dense tensors, is registered with ``torch.library`` (compile, export) and has a
gradient without atomics.
"""

from graphattn_kernels.bilateral_vote import agreed_edges, bilateral_vote
from graphattn_kernels.block_attention import block_attention
from graphattn_kernels.block_scores import block_scores
from graphattn_kernels.blocks import Blocks, BlockView
from graphattn_kernels.connected_components import connected_components
from graphattn_kernels.csr_attention import csr_attention
from graphattn_kernels.list_attention import list_attention
from graphattn_kernels.lists import SourceLists
from graphattn_kernels.rank_one_attention import rank_one_attention
from graphattn_kernels.relu_attention import relu_attention
from graphattn_kernels.sddmm import sddmm
from graphattn_kernels.segment_softmax import segment_softmax
from graphattn_kernels.segment_sum import segment_sum, spread
from graphattn_kernels.select_sources import select_bits, select_lists
from graphattn_kernels.spmm import spmm
from graphattn_kernels.structure import Structure, View

__all__ = [
    "BlockView",
    "Blocks",
    "SourceLists",
    "Structure",
    "View",
    "agreed_edges",
    "bilateral_vote",
    "block_attention",
    "block_scores",
    "connected_components",
    "csr_attention",
    "list_attention",
    "rank_one_attention",
    "relu_attention",
    "sddmm",
    "segment_softmax",
    "segment_sum",
    "select_bits",
    "select_lists",
    "spmm",
    "spread",
]
