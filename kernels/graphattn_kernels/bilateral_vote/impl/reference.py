"""The definition, in plain PyTorch, differentiable any number of times: the oracle."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels._grid import reciprocal
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["bilateral_vote"]


def bilateral_vote(cube: Tensor, rank: int, logits: bool) -> Tensor:
    """``[N, K, H, W]`` to ``[N, H, W]``: the ``rank``-th largest vote (0: the mean)."""
    p = cube.to(accumulate_dtype(cube.dtype))
    p = p.sigmoid() if logits else p
    votes = p * reciprocal(p)
    if rank == 0:
        return votes.mean(1).to(cube.dtype)
    # Stable: of equal votes, the first channel's is taken.
    chosen = votes.detach().sort(dim=1, descending=True, stable=True).indices[:, rank - 1 : rank]
    return votes.take_along_dim(chosen, 1).squeeze(1).to(cube.dtype)
