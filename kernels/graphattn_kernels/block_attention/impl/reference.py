"""The definition: a dense mask, dense scores, dense softmax; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.blocks import Blocks, to_mask

__all__ = ["block_attention"]


def block_attention(
    blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """See the API; memory is batch times heads times targets times sources."""
    dtype = accumulate_dtype(q.dtype)
    copies = q.shape[0] if "b" in blocks.leading else 1, q.shape[2] if "h" in blocks.leading else 1
    mask = to_mask(blocks).reshape(*copies, blocks.num_targets, blocks.num_sources)
    scores = torch.einsum("bthd,bshd->bhts", q.to(dtype), k.to(dtype)) * scale
    if clamp is not None:
        scores = scores.clamp(-clamp, clamp)
    scores = scores.masked_fill(~mask, float("-inf"))
    top = scores.new_zeros((*scores.shape[:-1], 1))
    if scores.shape[-1]:
        top = scores.detach().amax(-1, keepdim=True)
        top = top.masked_fill(top == float("-inf"), 0.0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    nobody = total == 0.0
    total = total.masked_fill(nobody, 1.0)
    out = torch.einsum("bhts,bshd->bthd", weights / total, v.to(dtype))
    lse = (top + total.log()).masked_fill(nobody, float("-inf")).squeeze(-1).transpose(1, 2)
    return out.to(v.dtype), lse
