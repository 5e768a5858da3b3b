"""The definition: a stable sort of each row, so that of equal scores the lowest source wins."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels.bits import pack

__all__ = ["chosen", "one_nan", "select_bits", "select_lists"]


def one_nan(scores: Tensor) -> Tensor:
    """The scores with one NaN for all: a CUDA sort takes those with a minus sign, which a CPU writes where it turns
    float32 into bfloat16, for the lowest of all scores."""
    return scores.masked_fill(scores.isnan(), float("nan"))


def chosen(scores: Tensor, k: int, at: float, always: Tensor | None, full: Tensor | None, own: int) -> Tensor:
    """bool ``[copies, rows, S]``."""
    forced = torch.zeros(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    if always is not None:
        forced = forced | always
    if own:
        row, column = (torch.arange(size, device=scores.device) for size in scores.shape[1:])
        forced = forced | (column // own == row[:, None])
    if k < 0:
        # In float32 at least: PyTorch rounds the number to a half type on a CPU, and not on CUDA.
        mask = (scores.float() if scores.dtype.itemsize < 4 else scores) > at
    else:
        value, source = one_nan(scores).masked_fill(forced, float("-inf")).sort(dim=-1, descending=True, stable=True)
        best = value[..., :k] != float("-inf")
        mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(-1, source[..., :k], best)
    mask = mask | forced
    return mask if full is None else mask | full.unsqueeze(-1)


def select_bits(scores: Tensor, k: int, at: float, always: Tensor | None, full: Tensor | None, own: int) -> Tensor:
    """See the API."""
    return pack(chosen(scores, k, at, always, full, own))


def select_lists(scores: Tensor, k: int, room: int, always: Tensor | None, own: int) -> tuple[Tensor, Tensor]:
    """See the API."""
    mask = chosen(scores, k, 0.0, always, None, own)
    index = mask.byte().sort(dim=-1, descending=True, stable=True).indices[..., :room]
    length = mask.sum(-1, dtype=torch.int32).clamp(max=room)
    return index.int().contiguous(), length
