"""The definition: scores of every edge, dense masked softmax, dense sum; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._random import dropout_scale
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.sddmm.impl.reference import sddmm
from graphattn_kernels.segment_softmax.impl.reference import segment_softmax
from graphattn_kernels.spmm.impl.reference import spmm
from graphattn_kernels.structure import Structure

__all__ = ["csr_attention"]


def csr_attention(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    scale: float,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See the API; memory is targets times edges."""
    dtype = accumulate_dtype(q.dtype)
    product = sddmm(structure, q.to(dtype), k.to(dtype), channels=True)
    if edge_gate is not None:
        product = product * edge_gate
    scores = product.sum(-1) * scale
    if edge_bias is not None:
        scores = scores + edge_bias
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)
    weights, lse = segment_softmax(structure, scores)
    if dropout_seed is not None and dropout_p:
        edges = torch.arange(structure.num_edges, device=scores.device)
        weights = weights * dropout_scale(dropout_seed, edges, scores.shape[1], dropout_p, dtype)
    out = spmm(structure, weights, v.to(dtype))
    return out.to(v.dtype), lse
