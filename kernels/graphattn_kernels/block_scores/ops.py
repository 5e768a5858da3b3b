"""Schema and fake; there is no gradient."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels._library import register

__all__ = ["block_scores"]


def _scores(q: Tensor, k: Tensor, block: int) -> Tensor:
    from graphattn_kernels.block_scores.impl import triton

    return triton.block_scores(q, k, block)


def _fake(q: Tensor, k: Tensor, block: int) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], (q.shape[1] + block - 1) // block, k.shape[1]))


block_scores = register("block_scores(Tensor q, Tensor k, SymInt block) -> Tensor", _scores, _fake)
