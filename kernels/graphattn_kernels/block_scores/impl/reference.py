"""The definition, in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["block_means", "block_scores"]


def block_means(rows: Tensor, block: int) -> Tensor:
    """Means over blocks of rows, ``[B, T, ...]`` to ``[B, ceil(T / block), ...]``; the last block may be short."""
    block = min(block, max(rows.shape[1], 1))
    short = -rows.shape[1] % block
    blocks = F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, short)).unflatten(1, (-1, block))
    sizes = blocks.new_full((blocks.shape[1], *[1] * (rows.dim() - 2)), block)
    sizes[-1:] -= short
    return blocks.sum(2) / sizes


def block_scores(q: Tensor, k: Tensor, block: int) -> Tensor:
    """See the API."""
    wide = torch.promote_types(q.dtype, torch.float32)
    mean = block_means(q.to(wide), block).to(q.dtype)
    with torch.autocast(q.device.type, enabled=False):
        return torch.einsum("bnhd,bshd->bhns", mean.to(wide), k.to(wide)).to(q.dtype)
