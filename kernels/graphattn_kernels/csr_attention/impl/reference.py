"""The definition: scores of every edge, dense masked softmax, dense sum; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from graphattn_kernels._random import dropout_scale
from graphattn_kernels.csr_attention.inputs import Inputs
from graphattn_kernels.segment_softmax.impl.reference import segment_softmax
from graphattn_kernels.segment_sum.impl.reference import spread
from graphattn_kernels.spmm.impl.reference import spmm
from graphattn_kernels.structure import Structure

__all__ = ["csr_attention"]


def csr_attention(structure: Structure, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """See the API; memory is targets times edges."""
    q, k, v, edge_bias, edge_gate, edge_rows, att, seed, scale, clamp, negative_slope, dropout_p, need_product = inputs
    assert edge_rows is None
    dtype = inputs.dtype
    q_edge, k_edge = spread(structure, q).to(dtype), spread(structure.T, k).to(dtype)
    if negative_slope is None:
        product = q_edge * k_edge * scale
        if edge_gate is not None:
            product = product * edge_gate
        scores = product.sum(-1)
    else:
        total = q_edge + k_edge if edge_gate is None else q_edge + k_edge + edge_gate
        product = leaky_relu(total, negative_slope) * scale
        scores = (product if att is None else product * att).sum(-1)
    if edge_bias is not None:
        scores = scores + edge_bias
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)
    weights, lse = segment_softmax(structure, scores)
    if seed is not None and dropout_p:
        edges = torch.arange(structure.num_edges, device=scores.device)
        weights = weights * dropout_scale(seed, edges, scores.shape[1], dropout_p, dtype)
    out = spmm(structure, weights, v.to(dtype))
    return out.to(v.dtype), lse, product.to(q.dtype) if need_product else None
