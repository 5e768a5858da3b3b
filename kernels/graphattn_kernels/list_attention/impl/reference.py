"""The definition: a dense mask, dense scores, dense softmax; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.lists import SourceLists, to_mask

__all__ = ["list_attention", "masked_softmax"]


def list_attention(
    lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """See the API; memory is batch times heads times targets times sources."""
    dtype = accumulate_dtype(q.dtype)
    copies = q.shape[0] if "b" in lists.leading else 1, q.shape[2] if "h" in lists.leading else 1
    mask = to_mask(lists).unflatten(0, copies)
    scores = torch.einsum("bthd,bshd->bhts", q.to(dtype), k.to(dtype)) * scale
    weights, lse = masked_softmax(scores, mask, clamp)
    out = torch.einsum("bhts,bshd->bthd", weights, v.to(dtype))
    return out.to(v.dtype), lse.transpose(1, 2)


def masked_softmax(scores: Tensor, mask: Tensor | None, clamp: float | None) -> tuple[Tensor, Tensor]:
    """Weights over the last axis and their log-sum-exp; a row without an entry has weights 0 and -inf."""
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    top = scores.new_zeros((*scores.shape[:-1], 1))
    if scores.shape[-1]:
        top = scores.detach().amax(-1, keepdim=True)
        top = top.masked_fill(top == float("-inf"), 0.0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    nobody = total == 0.0
    total = total.masked_fill(nobody, 1.0)
    return weights / total, (top + total.log()).masked_fill(nobody, float("-inf")).squeeze(-1)
