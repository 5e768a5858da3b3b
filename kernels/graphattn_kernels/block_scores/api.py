"""Public function: validation, and choice of backend."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels._calls import check_alike, lacks, triton_or
from graphattn_kernels.block_scores import ops
from graphattn_kernels.block_scores.impl import reference
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

__all__ = ["block_scores"]


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
    check_alike(q, k, k)
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 4:
            raise ArgumentError(f"{name} must be [B, tokens, H, D], got {list(x.shape)}")
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ArgumentError(f"q and k must agree in batch, heads and channels, got {list(q.shape)} and {list(k.shape)}")
    if isinstance(block, bool) or not isinstance(block, int):
        raise ArgumentTypeError(f"block must be an int, got {block!r}")
    if block < 1:
        raise ArgumentError(f"block must be positive, got {block}")
    q, k = q.detach(), k.detach()
    if backend == "reference" or triton_or("reference", backend, q.device, lambda: lacks(q, k)) == "reference":
        return reference.block_scores(q, k, block)
    return ops.block_scores(q, k, block)
