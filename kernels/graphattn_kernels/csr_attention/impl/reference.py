"""The definition: scores of every edge, dense masked softmax, dense sum; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._random import dropout_scale
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.sddmm.impl.reference import sddmm
from graphattn_kernels.segment_softmax.impl.reference import segment_softmax
from graphattn_kernels.spmm.impl.reference import spmm
from graphattn_kernels.structure import NUM_ARGS, unflat

__all__ = ["csr_attention"]


def csr_attention(*args: object) -> tuple[Tensor, Tensor]:
    """The operator's arguments (see ``ops``); memory is targets times edges."""
    structure = unflat(args[:NUM_ARGS])  # type: ignore[arg-type]
    q, k, v, edge_bias, edge_gate, scale, clamp, dropout_p, seed = args[NUM_ARGS:]
    dtype = accumulate_dtype(q.dtype)  # type: ignore[attr-defined]
    product = sddmm(structure, q.to(dtype), k.to(dtype), channels=True)  # type: ignore[attr-defined]
    if edge_gate is not None:
        product = product * edge_gate  # type: ignore[operator]
    scores = product.sum(-1) * scale  # type: ignore[operator]
    if edge_bias is not None:
        scores = scores + edge_bias  # type: ignore[operator]
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)  # type: ignore[operator]
    weights, lse = segment_softmax(structure, scores)
    if dropout_p:
        edges = torch.arange(structure.num_edges, device=scores.device)
        weights = weights * dropout_scale(seed, edges, scores.shape[1], dropout_p, dtype)  # type: ignore[arg-type]
    out = spmm(structure, weights, v.to(dtype))  # type: ignore[attr-defined]
    return out.to(v.dtype), lse  # type: ignore[attr-defined]
