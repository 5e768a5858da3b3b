"""What operations with Triton kernels ask alike: which implementation runs, and whether q, k and v fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphattn_kernels import backends
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError

__all__ = ["check_alike", "check_channels", "check_rows", "lacks", "triton_or"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDTH = 256  # channels of a head that fit on the chip beside a tile


def triton_or(fallback: str, backend: str, device: torch.device, why_not: Callable[[], str | None]) -> str:
    """``"triton"``, or for ``"auto"`` the fallback where that cannot run.

    Args:
        fallback: The implementation that always runs.
        backend: ``"auto"`` or a name.
        device: Where the tensors are.
        why_not: Why the kernels cannot take them; ``None``: they can.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If a backend that was named cannot run here; the text says why.
    """
    if backend == "auto":
        here = device.type == "cuda" and backends.choose("auto", device) == "triton"
        return "triton" if here and why_not() is None else fallback
    found = backends.choose(backend, device)
    reason = why_not() if found == "triton" else "this operation has no such implementation"
    if reason is None:
        return "triton"
    raise BackendError(f"backend {backend!r} cannot run: {reason}; use {fallback!r} or 'auto'")


def lacks(q: Tensor, v: Tensor, what: str = "it") -> str | None:
    """Why tiles cannot hold rows like these."""
    if q.dtype not in _DTYPES:
        return f"{what} take{'s' if what == 'it' else ''} float16, bfloat16 or float32, got {q.dtype}"
    if max(q.shape[-1], v.shape[-1]) > _WIDTH:
        return f"it takes at most {_WIDTH} channels a head, got {q.shape[-1]} and {v.shape[-1]}"
    return None


def check_alike(q: Any, k: Any, v: Any) -> None:
    """Raise unless q, k and v are floating tensors of one dtype on one device."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise ArgumentTypeError(f"{name} must be a floating tensor, got {x.dtype}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ArgumentTypeError(
                f"{name} must have the dtype and device of q, {q.dtype} on {q.device}, got {x.dtype} on {x.device}"
            )


def check_rows(q: Tensor, k: Tensor, v: Tensor, num_targets: int, num_sources: int, each: str | None) -> None:
    """Raise unless q, k and v are rows of a graph's targets and sources, ``[B, T, H, D]`` or ``[T, H, D]``.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        num_targets: Rows of q.
        num_sources: Rows of k and v.
        each: What each batch entry has of its own, for the error text; ``None``: nothing.
    """
    check_alike(q, k, v)
    if q.dim() not in (3, 4):
        raise ArgumentError(f"q must be [B, T, H, D] or [T, H, D], got shape {list(q.shape)}")
    if each is not None and q.dim() == 3:
        raise ArgumentError(f"q must be [B, T, H, D] where each batch entry has {each}, got shape {list(q.shape)}")
    for name, x, size, what in (
        ("q", q, num_targets, "target"),
        ("k", k, num_sources, "source"),
        ("v", v, num_sources, "source"),
    ):
        if x.dim() != q.dim() or x.shape[-3] != size:
            raise ArgumentError(
                f"{name} must have {q.dim()} dimensions and one row for each {what} ({size}), got shape {list(x.shape)}"
            )
        if x.shape[:-3] != q.shape[:-3] or x.shape[-2] != q.shape[-2]:
            raise ArgumentError(f"{name} must have the batch and heads of q, {list(q.shape)}, got {list(x.shape)}")
    if k.shape[-1] != q.shape[-1]:
        raise ArgumentError(f"k must have the channels of q, {q.shape[-1]}, got {k.shape[-1]}")
    check_channels(q)


def check_channels(q: Tensor) -> None:
    """Raise unless q has channels, without which no score has a scale."""
    if q.shape[-1] < 1:
        raise ArgumentError(f"q must have at least one channel, got shape {list(q.shape)}")
