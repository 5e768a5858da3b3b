"""The definition; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._members import Members, without_padding
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["rank_one_attention"]


def rank_one_attention(
    q: Tensor, k: Tensor, v: Tensor, members: Members, eps_q: float, eps_k: float, factor: float
) -> Tensor:
    """See the API; ``eps_q`` and ``eps_k`` are for q and k as they are."""
    if members.target_ptr is None:
        q = without_padding(q, members.target_lengths)
        k, v = (without_padding(x, members.source_lengths) for x in (k, v))
        return _dense(q, k, v, eps_q, eps_k, factor)
    parts = [_dense(q[:, t], k[:, s], v[:, s], eps_q, eps_k, factor) for t, s in members.slices()]
    return torch.cat([v.new_empty((0, *v.shape[2:])), *parts])


def _dense(q: Tensor, k: Tensor, v: Tensor, eps_q: float, eps_k: float, factor: float) -> Tensor:
    dtype = accumulate_dtype(q.dtype)
    x, k = q.to(dtype), k.to(dtype)
    square = x.square().sum(-1, keepdim=True)
    nobody = square == 0.0  # the root has no slope there
    length = square.masked_fill(nobody, 1.0).sqrt().masked_fill(nobody, 0.0)
    mean = (length * x).sum(1) / (length.sum(1) + eps_q)
    weights = torch.einsum("bhd,bshd->bsh", mean, k).relu()
    mixture = torch.einsum("bsh,bshd->bhd", weights, v.to(dtype))
    return (mixture / (weights.sum(1) + eps_k).unsqueeze(-1) * factor).to(v.dtype)
