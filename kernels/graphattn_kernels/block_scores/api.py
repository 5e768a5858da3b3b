"""Public function: validation, and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels import backends
from graphattn_kernels.block_scores import ops
from graphattn_kernels.block_scores.impl import reference
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError

__all__ = ["block_scores"]

_WIDEST = 256  # channels of a head that a program of the kernel holds


def block_scores(q: Tensor, k: Tensor, block: int, *, backend: str = "auto") -> Tensor:
    """The product of each key with the mean of each block of queries; nothing waits for the device.

    What a choice of keys for blocks of queries rests on, as in ``TokenGraph.top_k(scores, k, block=block)``: the mean
    of a block's products with a key is the key's product with the block's mean. No gradient.

    Args:
        q: ``[B, T, H, D]`` queries, floating.
        k: ``[B, S, H, D]`` keys, of the same dtype.
        block: Queries of a block; the last block may be short.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``[B, H, ceil(T / block), S]`` in the dtype of ``q``. Means are rounded to that dtype, and products of half
        types are summed in float32.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If types or dtypes do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    for name, x in (("q", q), ("k", k)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentTypeError(f"{name} must be a floating tensor, got {got}")
        if x.dim() != 4:
            raise ArgumentError(f"{name} must be [B, tokens, H, D], got {list(x.shape)}")
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ArgumentError(f"q and k must agree in batch, heads and channels, got {list(q.shape)} and {list(k.shape)}")
    if q.dtype != k.dtype or q.device != k.device:
        raise ArgumentTypeError(
            f"q and k must have one dtype and device, got {q.dtype} on {q.device} and {k.dtype} on {k.device}"
        )
    if isinstance(block, bool) or not isinstance(block, int):
        raise ArgumentTypeError(f"block must be an int, got {block!r}")
    if block < 1:
        raise ArgumentError(f"block must be positive, got {block}")
    if _select(backend, q) == "reference":
        return reference.block_scores(q.detach(), k.detach(), block)
    return ops.block_scores(q, k, block)


def _select(backend: str, q: Tensor) -> str:
    if backend == "reference":
        return backend
    reason = None
    if q.shape[-1] > _WIDEST:
        reason = f"it takes at most {_WIDEST} channels, got {q.shape[-1]}"
    elif q.dtype == torch.float64:
        reason = "it takes float16, bfloat16 or float32, got torch.float64"
    if backend == "auto":
        on_cuda = q.device.type == "cuda" and backends.choose("auto", q.device) == "triton"
        return "triton" if on_cuda and reason is None else "reference"
    if backends.choose(backend, q.device) != "triton":
        reason = "this operation has no such implementation"
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot run: {reason}; use 'reference' or 'auto'")
    return "triton"
