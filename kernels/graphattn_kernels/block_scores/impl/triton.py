"""Two launches: the means, and their products with keys, on tensor cores (of float32, which has none, by PyTorch).

In one kernel each program would have to average the queries of all blocks that it multiplies, and these would be read
once for every strip of keys.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import (
    chained,
    dense_rows,
    guard,
    launch,
    next_power_of_2,
    padded,
    strides_of,
    wait_for_previous,
)
from graphattn_kernels.block_attention.impl.triton.primitives import dot, load_rows, origin

__all__ = ["block_scores"]

_RUNTIME = "blocks block strips chunks num_targets num_sources heads q_b q_t q_h k_b k_t k_h".split()
_STEP = 2048  # numbers of queries that a warp averages at a time
_ROWS, _KEYS = 64, 128  # means and keys of a program


@triton.jit(do_not_specialize=_RUNTIME)
def mean_kernel(
    Q, MEAN, blocks, block, num_targets, heads, q_b, q_t, q_h,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, ALIGN: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """MEAN ``[B * H, blocks, D]``. A program has a block of a head, M queries at a time; heads, which lie side by side,
    run fastest."""
    wait_for_previous(CHAINED)
    pid = tl.program_id(0)
    head = pid % heads
    block_id = pid // heads % blocks
    batch = pid // heads // blocks
    base = origin(batch.to(tl.int64), q_b, head.to(tl.int64), q_h, ALIGN)
    first = block_id.to(tl.int64) * block
    size = tl.minimum(block, num_targets - first).to(tl.int32)
    total = tl.zeros([DP], tl.float32)
    for start in range(0, size, M):
        local = start + tl.arange(0, M)
        rows = load_rows(Q, base, first, local, q_t, local < size, D, DP, ALIGN, False)
        total += tl.sum(rows.to(tl.float32), 0)
    channel = tl.arange(0, DP)
    at = ((batch * heads + head) * blocks + block_id).to(tl.int64) * D + channel
    tl.store(MEAN + at, (total / size).to(MEAN.dtype.element_ty), mask=channel < D)


@triton.jit(do_not_specialize=_RUNTIME)
def product_kernel(
    MEAN, K, SCORES, blocks, strips, chunks, num_sources, heads, k_b, k_t, k_h,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ALIGN: tl.constexpr,
    ALIGN_SOURCES: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """SCORES ``[B * H, blocks, S]``. A program has M means and N keys of a batch entry and head."""
    wait_for_previous(CHAINED)
    num_sources = num_sources // ALIGN_SOURCES * ALIGN_SOURCES  # as it is: how many can be stored at once
    pid = tl.program_id(0)
    entry = pid // (strips * chunks)
    row = pid % strips * M + tl.arange(0, M)
    key = pid // strips % chunks * N + tl.arange(0, N)
    base = origin((entry // heads).to(tl.int64), k_b, (entry % heads).to(tl.int64), k_h, ALIGN)
    k = load_rows(K, base, 0, key.to(tl.int64), k_t, key < num_sources, D, DP, ALIGN, False)
    mean = load_rows(MEAN, entry.to(tl.int64) * blocks * D, 0, row, D, row < blocks, D, DP, ALIGN, False)
    score = dot(mean, tl.trans(k), None, "ieee")
    SCORES += entry.to(tl.int64) * blocks * num_sources
    at = SCORES + row.to(tl.int64)[:, None] * num_sources + key[None, :]
    tl.store(at, score.to(SCORES.dtype.element_ty), mask=(row < blocks)[:, None] & (key < num_sources)[None, :])


def block_scores(q: Tensor, k: Tensor, block: int) -> Tensor:
    """See the API."""
    batch, targets, heads, width = q.shape
    sources, blocks = k.shape[1], -(-targets // block)
    mean = q.new_empty((batch * heads, blocks, width))
    scores = q.new_empty((batch, heads, blocks, sources))
    with guard(q):
        q, k = dense_rows(q), dense_rows(k)
        strides, align = strides_of(q.dtype, *((x.shape, x.stride()) for x in (q, k)))
        widths = {"D": width, "DP": padded(width)}
        early = chained(q.get_device())
        means = {
            "M": max(1, min(next_power_of_2(block), _STEP // padded(width))),
            "ALIGN": align,
            "CHAINED": early,
            "num_warps": 1,
            "num_stages": 1,
        }
        args = (q, mean, blocks, block, targets, heads, *strides[:3])
        launch(mean_kernel, (batch * heads * blocks, 1, 1), args, {**widths, **means})
        if q.dtype == torch.float32:
            # A product with ``out`` is not autocast. Of tf32, PyTorch's own setting decides.
            return torch.matmul(mean.view(batch, heads, blocks, width), k.permute(0, 2, 3, 1), out=scores)

        rows = min(_ROWS, max(16, next_power_of_2(max(blocks, 1))))
        strips, chunks = -(-blocks // rows), -(-sources // _KEYS)
        products = {
            "M": rows,
            "N": _KEYS,
            "ALIGN": align,
            "ALIGN_SOURCES": math.gcd(sources, 16 // q.element_size()) if sources else 1,
            "CHAINED": early,
            "num_warps": 4,
            "num_stages": 1,
        }
        args = (mean, k, scores, blocks, strips, chunks, sources, heads, *strides[3:])
        launch(product_kernel, (batch * heads * strips * chunks, 1, 1), args, {**widths, **products})
    return scores
