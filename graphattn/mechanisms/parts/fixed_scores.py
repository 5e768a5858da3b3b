"""Scores that no input changes: what learned graphs are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_scores", "window_scores"]


def random_scores(heads: int, tokens: int, seed: int) -> Tensor:
    """Independent numbers for each head and pair, ``[H, N, N]``."""
    return torch.rand(heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))


def window_scores(grid: tuple[int, int], prefix: int) -> Tensor:
    """Nearness of patches, row by row after ``prefix`` tokens, that are near to everybody: ``[N, N]``."""
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float32) for size in grid))
    tokens = prefix + places.shape[0]
    scores = torch.full((tokens, tokens), torch.finfo(torch.float32).max)
    scores[prefix:, prefix:] = -torch.cdist(places, places).square()
    return scores
