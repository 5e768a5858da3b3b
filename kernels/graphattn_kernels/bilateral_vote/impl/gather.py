"""Plain PyTorch for any device: channel after channel, so that no second cube is made; own backward without atomics."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._grid import OFFSETS, shifted
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["agreed_edges", "backward", "forward"]


def forward(cube: Tensor, rank: int, logits: bool) -> tuple[Tensor, Tensor | None]:
    """See the API. Returns the map, and uint8 ``[N, H, W]``, the channel whose vote it is (``None`` for the mean)."""
    neighbours = cube.shape[1]
    votes = (_vote(cube, c, logits) for c in range(neighbours))
    if rank == 0:
        total = next(votes).clone()
        for vote in votes:
            total += vote
        return (total / neighbours).to(cube.dtype), None
    if 1 < rank < neighbours:
        value, order = torch.stack(list(votes), 1).sort(dim=1, descending=True, stable=True)
        return value[:, rank - 1].to(cube.dtype, copy=True), order[:, rank - 1].to(torch.uint8)
    best = next(votes)
    chosen = torch.zeros_like(best, dtype=torch.uint8)
    for c, vote in enumerate(votes, 1):
        # The largest is the first of its equals, the smallest the last; NaN counts as the largest.
        better = (vote > best) | (vote.isnan() & ~best.isnan()) if rank == 1 else (vote <= best) | best.isnan()
        best, chosen = torch.where(better, vote, best), chosen.masked_fill(better, c)
    return best.to(cube.dtype), chosen


def backward(cube: Tensor, rank: int, logits: bool, chosen: Tensor | None, grad: Tensor) -> Tensor:
    """Gradient of the cube: a pair's vote counts at either end where it was chosen there."""
    neighbours, dtype = cube.shape[1], accumulate_dtype(cube.dtype)
    result, grad = torch.empty_like(cube, memory_format=torch.contiguous_format), grad.to(dtype)
    for c, (down, right) in enumerate(OFFSETS[neighbours]):
        opposite = neighbours - 1 - c
        mine, theirs = grad, shifted(grad, down, right)
        if chosen is not None:
            mine = mine.masked_fill(chosen != c, 0.0)
            theirs = shifted(grad.masked_fill(chosen != opposite, 0.0), down, right)
        p, q = _probability(cube[:, c], logits), shifted(_probability(cube[:, opposite], logits), down, right)
        slope = (mine + theirs) * q
        if logits:
            slope = slope * (p * (1.0 - p))
        result[:, c] = slope / neighbours if rank == 0 else slope
    return result


def agreed_edges(cube: Tensor, threshold: float) -> Tensor:
    """See the API; ``threshold`` in the unit of the cube."""
    neighbours = cube.shape[1]
    bits = cube.new_zeros((cube.shape[0], *cube.shape[2:]), dtype=torch.uint8)
    # In float32 at least: PyTorch rounds the number to a half type on a CPU, and not on CUDA.
    above = cube.to(accumulate_dtype(cube.dtype)) > threshold
    for c, (down, right) in enumerate(OFFSETS[neighbours]):
        agreed = above[:, c] & shifted(above[:, neighbours - 1 - c], down, right)
        bits += agreed.to(torch.uint8) << c
    return bits


def _probability(x: Tensor, logits: bool) -> Tensor:
    x = x.to(accumulate_dtype(x.dtype))
    return x.sigmoid() if logits else x


def _vote(cube: Tensor, c: int, logits: bool) -> Tensor:
    neighbours = cube.shape[1]
    theirs = _probability(cube[:, neighbours - 1 - c], logits)
    return _probability(cube[:, c], logits) * shifted(theirs, *OFFSETS[neighbours][c])
