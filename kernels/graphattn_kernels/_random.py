"""A counter-based random mask: the same bits from the same seed in forward, backward and every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_dropout", "dropout_scale"]

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser with low bias (Wellons, "lowbias32"), in int64 arithmetic."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def dropout_scale(seed: Tensor, edges: Tensor, heads: int, p: float, dtype: torch.dtype) -> Tensor:
    """Inverted dropout as a factor: 0 with probability ``p``, else ``1 / (1 - p)``.

    Args:
        seed: int64 ``[2]``.
        edges: ``[E]``: the number of each edge in the caller's order.
        heads: H.
        p: Probability of dropping a weight, in ``[0, 1)``.
        dtype: Of the result.

    Returns:
        ``[E, H]``, a pure function of (seed, edge, head).
    """
    low, high = seed[0] & _MASK, seed[1] & _MASK
    edges = edges.long()
    counter = _mix((edges & _MASK) ^ low)
    counter = _mix(counter ^ (edges >> 32) ^ high)
    head = torch.arange(heads, device=edges.device) * 0x9E3779B9 & _MASK
    bits = _mix((counter[:, None] + head) & _MASK)
    return (bits >= int(p * 2**32)).to(dtype) / (1.0 - p)


def check_dropout(p: float, seed: Tensor | None, device: torch.device) -> None:
    """Raise unless ``p`` is a probability below 1 and, where it is not 0, ``seed`` is int64 ``[2]`` on ``device``."""
    if not 0.0 <= p < 1.0:
        raise ArgumentError(f"dropout_p must lie in [0, 1), got {p}")
    if p == 0.0:
        return
    if seed is None:
        raise ArgumentError(
            "dropout_p > 0 needs dropout_seed, an int64 tensor of shape [2]; graphattn.draw_seed draws one"
        )
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.shape != (2,):
        got = f"{seed.dtype} {list(seed.shape)}" if isinstance(seed, Tensor) else type(seed).__name__
        raise ArgumentTypeError(f"dropout_seed must be an int64 tensor of shape [2], got {got}")
    if seed.device != device:
        raise ArgumentError(f"dropout_seed must be on the device of the values, {device}, got {seed.device}")
