"""The definition, in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["block_scores"]


def block_scores(q: Tensor, k: Tensor, block: int) -> Tensor:
    """See the API."""
    wide = torch.promote_types(q.dtype, torch.float32)
    short = -q.shape[1] % block
    blocks = F.pad(q.to(wide), (0, 0, 0, 0, 0, short)).unflatten(1, (-1, block))
    sizes = blocks.new_full((blocks.shape[1], 1, 1), block)
    sizes[-1:] -= short
    mean = (blocks.sum(2) / sizes).to(q.dtype)
    with torch.autocast(q.device.type, enabled=False):
        return torch.einsum("bnhd,bshd->bhns", mean.to(wide), k.to(wide)).to(q.dtype)
