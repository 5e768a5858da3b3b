"""Public function: validation that no backend may differ on, and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._calls import check_rows, lacks, triton_or
from graphattn_kernels._library import autocast, in_full
from graphattn_kernels.block_attention import ops
from graphattn_kernels.block_attention.impl import reference
from graphattn_kernels.blocks import Blocks
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

__all__ = ["attend_checked", "block_attention", "select"]


def block_attention(
    blocks: Blocks,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    clamp: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention of every target over the sources that its tiles let it read.

    Under autocast the tensors are cast to its dtype.

    .. math::
        a_{tsh} = \\operatorname{clamp}\\Big(\\sigma \\sum_d q_{thd} k_{shd}\\Big), \\qquad
        y_{th} = \\sum_{s \\to t} \\operatorname{softmax}_{s \\to t}(a_{tsh})\\, v_{sh}

    Args:
        blocks: The graph; one for each batch entry and/or head where ``blocks.leading`` says so.
        q: ``[B, T, H, D]`` or ``[T, H, D]`` queries.
        k: ``[B, S, H, D]`` or ``[S, H, D]`` keys.
        v: ``[B, S, H, D_v]`` or ``[S, H, D_v]`` values.
        scale: Factor sigma of the product; default ``D ** -0.5``.
        clamp: Bound on the magnitude of the score.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``[B, T, H, D_v]`` in the dtype of ``v`` (a target that reads nobody gets exactly 0), and the log-sum-exp of
        its scores ``[B, T, H]`` in float32 (float64 for float64), -inf for a target that reads nobody; without B as
        the inputs. Both are differentiable.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If dtypes do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    for name, x in {"q": q, "k": k, "v": v}.items():
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{name} must be a tensor, got {type(x).__name__}")
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    batched = _check(blocks, q, k, v)
    if clamp is not None and not clamp > 0:
        raise ArgumentError(f"clamp must be positive, got {clamp}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    name = select(backend, q, v)
    if not batched:
        q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
    if name == "reference":
        with in_full(q):
            out, lse = reference.block_attention(blocks, q, k, v, scale, clamp)
    else:
        out, lse = attend_checked(blocks, q, k, v, scale, clamp)
    return (out, lse) if batched else (out.squeeze(0), lse.squeeze(0))


def attend_checked(
    blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """The Triton kernels for callers that have checked what :func:`block_attention` checks, and have a batch axis: on a
    small graph, looking twice takes longer than the kernel."""
    return ops.block_attention(blocks, q, k, v, scale, clamp)


def select(backend: str, q: Tensor, v: Tensor) -> str:
    """The backend that :func:`block_attention` takes for these tensors.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If a backend that was named cannot run here; the text says why.
    """
    if backend == "reference":
        return backend
    return triton_or("reference", backend, q.device, lambda: lacks(q, v, "its tiles"))


def _check(blocks: Blocks, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Raise unless everything fits; whether there is a batch axis."""
    check_rows(q, k, v, blocks.num_targets, blocks.num_sources, "its graph" if "b" in blocks.leading else None)
    view = blocks.by_target
    if view.ptr.device != q.device:
        raise ArgumentError(f"the graph must be on the device of q, {q.device}, got {view.ptr.device}")
    for x in (*view, *blocks.by_source, blocks.target, blocks.source):
        if x is not None and x.dtype != torch.int32:
            raise ArgumentTypeError(f"the arrays of the graph must be int32, got {x.dtype}")
        if x is not None and not x.is_contiguous():
            raise ArgumentError(f"the arrays of the graph must be contiguous, got strides {list(x.stride())}")
    batch = q.shape[0] if q.dim() == 4 else 1
    rows = blocks.copies(batch, q.shape[-2]) * blocks.target_blocks
    if view.num_rows != rows:
        raise ArgumentError(
            f"q must have the batch and heads that the graph was made for ({rows} rows of tiles, "
            f"the graph has {view.num_rows}), got shape {list(q.shape)}"
        )
    return q.dim() == 4
