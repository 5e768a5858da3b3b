"""A stable order of scores: for each source, how many stand before it; all pairs are compared."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import aligned, guard, launch

__all__ = ["order_sources"]

_RANKED, _COMPARED = 16, 128  # sources whose ranks a program finds, and those that it compares them with in a step


@triton.jit
def _key(score):
    """int32 in the order of float32 scores; NaN is the largest."""
    bits = tl.where(score == 0.0, 0, score.to(tl.int32, bitcast=True))  # -0 and 0 are equal
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score != score, 0x7FFFFFFE, key)


@triton.jit(do_not_specialize=["sources", "chunks"])
def order_kernel(SCORES, ORDER, sources, chunks, N: tl.constexpr, C: tl.constexpr):
    """SCORES ``[copies, S]`` in float32, ORDER ``[copies, S]``. A program has N sources and compares them with all."""
    copy = (tl.program_id(0) // chunks).to(tl.int64)
    SCORES += copy * sources
    mine = tl.program_id(0) % chunks * N + tl.arange(0, N)
    there = mine < sources
    key = _key(tl.load(SCORES + mine, mask=there, other=0.0))
    before = tl.zeros([N, C], tl.int32)
    for start in range(0, sources, C):
        other = start + tl.arange(0, C)
        present = other < sources
        score = tl.load(SCORES + other, mask=present, other=float("nan"))  # what is not there comes last
        first = (other[None, :] < mine[:, None]).to(tl.int32)  # of equal scores
        before += (_key(score)[None, :] < key[:, None] + first).to(tl.int32)
    tl.store(ORDER + copy * sources + tl.sum(before, 1), mine.to(tl.int64), mask=there)


def order_sources(scores: Tensor) -> Tensor:
    """See the API."""
    copies, sources = scores.shape
    order = scores.new_empty(scores.shape, dtype=torch.int64)
    chunks = -(-sources // _RANKED)
    with guard(scores):
        scores = aligned(scores.float().contiguous())
        constants = {"N": _RANKED, "C": _COMPARED, "num_warps": 4, "num_stages": 1}
        launch(order_kernel, (copies * chunks, 1, 1), (scores, order, sources, chunks), constants)
    return order
