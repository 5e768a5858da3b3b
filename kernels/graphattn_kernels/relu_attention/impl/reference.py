"""The definition: dense scores and their norm; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._members import Members, without_padding
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["relu_attention"]


def relu_attention(
    q: Tensor, k: Tensor, v: Tensor, members: Members, scale: float, causal: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """See the API; memory is batch times heads times targets times sources."""
    if members.target_ptr is None:
        q = without_padding(q, members.target_lengths)
        k, v = (without_padding(x, members.source_lengths) for x in (k, v))
        return _dense(q, k, v, scale, causal, eps)
    parts = [_dense(q[:, t], k[:, s], v[:, s], scale, causal, eps) for t, s in members.slices()]
    # Slices of none: a batch without members has a result, too.
    outs, norms = [v[:, :0, :, :] for _ in range(1)], [q.new_empty((0, q.shape[2]), dtype=accumulate_dtype(q.dtype))]
    return torch.cat(outs + [out for out, _ in parts], 1), torch.cat(norms + [norm for _, norm in parts])


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, eps: float) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(q.dtype)
    weights = (torch.einsum("bthd,bshd->bhts", q.to(dtype), k.to(dtype)) * scale).relu()
    if causal:
        weights = weights.tril()
    square = weights.square().sum((-2, -1))
    nobody = square == 0.0  # the root has no slope there
    norm = square.masked_fill(nobody, 1.0).sqrt().masked_fill(nobody, 0.0)
    out = torch.einsum("bhts,bshd->bthd", weights, v.to(dtype)) / (norm + eps)[:, None, :, None]
    return out.to(v.dtype), norm
