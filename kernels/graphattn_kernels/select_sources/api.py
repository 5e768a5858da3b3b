"""Public functions: validation, and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._calls import triton_or
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError
from graphattn_kernels.select_sources import ops
from graphattn_kernels.select_sources.impl import reference

__all__ = ["order_sources", "select_bits", "select_lists"]

_WIDEST = 1 << 15  # sources of a row that one program of the kernel holds
_COMPARED = 1 << 13  # sources of a row up to which comparing all pairs is faster than a sort


def select_bits(
    scores: Tensor,
    k: int | None = None,
    *,
    at: float | None = None,
    always: Tensor | None = None,
    full: Tensor | None = None,
    keep_self: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The best sources of each row, as bits; nothing waits for the device.

    Of equal scores the source with the lowest number wins. NaN counts as the largest score, -inf is never chosen.

    Args:
        scores: ``[copies, T, S]``, floating; or bool, where ``at`` is 0 and true entries are chosen.
        k: Sources that each row takes, besides those that it has in any case (``always``, itself).
        at: Instead of ``k``: every source whose score is larger (NaN is not).
        always: bool ``[S]``: sources that every row has.
        full: bool ``[T]``: rows that have all sources.
        keep_self: Row t has source t.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        int32 ``[copies, T, ceil(S / 32)]``: source j is bit ``j % 32`` of word ``j // 32``, unused bits 0.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If types or dtypes do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    if (k is None) == (at is None):
        raise ArgumentError("give k (so many sources) or at (all sources above a score), not both")
    is_mask = isinstance(scores, Tensor) and scores.dtype == torch.bool
    if is_mask:
        if at != 0:
            raise ArgumentTypeError("scores must be a floating tensor, got torch.bool (with at=0 it is a mask)")
        scores = scores.to(torch.float16) if not scores.is_cuda else scores.view(torch.uint8)
    _check(scores, always, ("full", full, -2), is_mask=is_mask, k=0 if k is None else k)
    call = (scores, -1 if k is None else k, 0.0 if at is None else float(at), always, full, int(keep_self))
    if _select(backend, scores) == "reference":
        return reference.select_bits(scores.half() if scores.dtype == torch.uint8 else scores, *call[1:])
    return ops.select_bits(*call)


def select_lists(
    scores: Tensor,
    k: int,
    *,
    always: Tensor | None = None,
    room: int | None = None,
    own: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The best sources of each row, as a list in ascending order; nothing waits for the device.

    Ties, NaN and -inf as in :func:`select_bits`.

    Args:
        scores: ``[copies, rows, S]``, floating.
        k: Sources that each row takes, besides those that it has in any case.
        always: bool ``[S]``: sources that every row has.
        room: Entries of a list; those that do not fit, the last, are left out. Default: ``k``, and ``own``.
        own: Row r has the sources ``r * own`` to ``(r + 1) * own - 1``, too.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        int32 ``[copies, rows, room]``, and int32 ``[copies, rows]``, how many entries of each list are in use (the
        others are some source or other).

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If types or dtypes do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    _check(scores, always, None, k=k, own=own, room=0 if room is None else room)
    room = min(k + own if room is None else room, scores.shape[-1])
    if _select(backend, scores) == "reference":
        return reference.select_lists(scores, k, room, always, own)
    return ops.select_lists(scores, k, room, always, own)


def order_sources(scores: Tensor) -> Tensor:
    """The sources of each row in ascending order of their scores: a stable argsort, which for rows of up to 8,192 on
    CUDA is one launch.

    Args:
        scores: ``[copies, S]``, floating; NaN comes last.

    Returns:
        int64 ``[copies, S]``.

    Raises:
        ArgumentError: If ``scores`` has another shape.
    """
    if not isinstance(scores, Tensor) or scores.dim() != 2 or not scores.is_floating_point():
        got = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ArgumentError(f"scores must be a floating tensor [copies, S], got {got}")
    if scores.shape[1] <= _COMPARED and _select("auto", scores) == "triton":
        return ops.order_sources(scores)
    return reference.one_nan(scores).argsort(dim=1, stable=True)


def _select(backend: str, scores: Tensor) -> str:
    def lacks() -> str | None:
        if scores.shape[-1] > _WIDEST:
            return f"it takes at most {_WIDEST} sources, got {scores.shape[-1]}"
        if scores.dtype == torch.float64:
            return "it takes float16, bfloat16 or float32, got torch.float64"
        return None

    return backend if backend == "reference" else triton_or("reference", backend, scores.device, lacks)


def _check(
    scores: Tensor,
    always: Tensor | None,
    full: tuple[str, Tensor | None, int] | None,
    *,
    is_mask: bool = False,
    **sizes: int,
) -> None:
    if not isinstance(scores, Tensor) or not (is_mask or scores.is_floating_point()):
        got = str(scores.dtype) if isinstance(scores, Tensor) else type(scores).__name__
        raise ArgumentTypeError(f"scores must be a floating tensor, got {got}")
    if scores.dim() != 3:
        raise ArgumentError(f"scores must be [copies, rows, S], got {list(scores.shape)}")
    for size_name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise ArgumentTypeError(f"{size_name} must be an int, got {size!r}")
        if size < 0:
            raise ArgumentError(f"{size_name} must not be negative, got {size}")
    for name, x, axis in (("always", always, -1), *(() if full is None else (full,))):
        if x is None:
            continue
        if not isinstance(x, Tensor) or x.dtype != torch.bool:
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentTypeError(f"{name} must be a bool tensor, got {got}")
        if x.shape != (scores.shape[axis],) or x.device != scores.device:
            raise ArgumentError(
                f"{name} must have shape [{scores.shape[axis]}] on {scores.device}, got {list(x.shape)} on {x.device}"
            )
