"""Public function: validation that no backend may differ on, and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._calls import check_rows, lacks, triton_or
from graphattn_kernels._library import autocast, in_full
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError
from graphattn_kernels.list_attention import ops
from graphattn_kernels.list_attention.impl import gather, reference
from graphattn_kernels.lists import SourceLists

__all__ = ["attend_checked", "list_attention", "select"]


def list_attention(
    lists: SourceLists,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    clamp: float | None = None,
    need_lse: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Attention of every target over the sources in the list of its block.

    Under autocast the tensors are cast to its dtype.

    .. math::
        a_{tsh} = \\operatorname{clamp}\\Big(\\sigma \\sum_d q_{thd} k_{shd}\\Big), \\qquad
        y_{th} = \\sum_{s \\in L(t)} \\operatorname{softmax}_{s \\in L(t)}(a_{tsh})\\, v_{sh}

    Args:
        lists: Who reads whom; lists for each batch entry and/or head where ``lists.leading`` says so.
        q: ``[B, T, H, D]`` or ``[T, H, D]`` queries.
        k: ``[B, S, H, D]`` or ``[S, H, D]`` keys.
        v: ``[B, S, H, D_v]`` or ``[S, H, D_v]`` values.
        scale: Factor sigma of the product; default ``D ** -0.5``.
        clamp: Bound on the magnitude of the score.
        need_lse: Whether the log-sum-exp is wanted: without it, disjoint lists can take PyTorch's dense attention.
        backend: ``"auto"``, ``"dense"`` (gather, then PyTorch's attention), ``"triton"``, ``"gather"`` or
            ``"reference"``.

    Returns:
        ``[B, T, H, D_v]`` in the dtype of ``v`` (a target that reads nobody gets exactly 0), and the log-sum-exp of
        its scores ``[B, T, H]`` in float32 (float64 for float64), -inf for a target that reads nobody; without B as
        the inputs. Both are differentiable. ``None`` for the second from ``"dense"``.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If dtypes do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    for name, x in {"q": q, "k": k, "v": v}.items():
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{name} must be a tensor, got {type(x).__name__}")
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    batched = _check(lists, q, k, v)
    if clamp is not None and not clamp > 0:
        raise ArgumentError(f"clamp must be positive, got {clamp}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not batched:
        q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
    out, lse = attend_checked(lists, q, k, v, scale, clamp, need_lse, backend)
    if batched:
        return out, lse
    return out.squeeze(0), None if lse is None else lse.squeeze(0)


def attend_checked(
    lists: SourceLists,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    clamp: float | None,
    need_lse: bool,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """The same for callers that have checked what :func:`list_attention` checks, and have a batch axis: where lists are
    short, looking twice takes longer than the kernel."""
    name = select(backend, lists, q, v, clamp=clamp, need_lse=need_lse)
    out, lse = _run(name, lists, q, k, v, scale, clamp)
    if lists.own and name != "reference":
        assert lse is not None
        return _with_itself(out, lse, q, k, v, scale, clamp)
    return out, lse


def select(
    backend: str, lists: SourceLists, q: Tensor, v: Tensor, *, clamp: float | None = None, need_lse: bool = True
) -> str:
    """The backend that :func:`list_attention` takes for these arguments.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If a backend that was named cannot run here; the text says why.
    """
    if backend in ("reference", "gather"):
        return backend
    if backend in ("auto", "dense"):
        reason = "it returns no log-sum-exp" if need_lse else gather.why_not_dense(lists, clamp)
        if reason is None:
            return "dense"
        if backend == "dense":
            raise BackendError(f"backend 'dense' cannot run: {reason}; use 'gather' or 'auto'")
    return triton_or("gather", backend, q.device, lambda: lacks(q, v))


def _run(
    name: str, lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor | None]:
    if name == "dense":
        return gather.dense(lists, q, k, v, scale), None
    if name == "triton":
        return ops.list_attention(lists, q, k, v, scale, clamp)
    with in_full(q):
        return (reference if name == "reference" else gather).list_attention(lists, q, k, v, scale, clamp)


def _with_itself(
    out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """Joined with the edge from each token to itself, which the other edges leave out."""
    dtype = accumulate_dtype(q.dtype)
    score = (q.to(dtype) * k.to(dtype)).sum(-1) * scale
    if clamp is not None:
        score = score.clamp(-clamp, clamp)
    alone = lse == float("-inf")  # an infinite number has no second derivative
    lse = lse.masked_fill(alone, 0.0)
    total = torch.where(alone, score, torch.logaddexp(lse, score))
    others = (lse - total).exp().masked_fill(alone, 0.0)
    out = others.unsqueeze(-1) * out.to(dtype) + (score - total).exp().unsqueeze(-1) * v.to(dtype)
    return out.to(v.dtype), total


def _check(lists: SourceLists, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Raise unless everything fits; whether there is a batch axis."""
    check_rows(q, k, v, lists.num_targets, lists.num_sources, "its lists" if "b" in lists.leading else None)
    if lists.index.device != q.device:
        raise ArgumentError(f"the lists must be on the device of q, {q.device}, got {lists.index.device}")
    if lists.own and lists.num_targets != lists.num_sources:
        raise ArgumentError("targets read themselves only where targets and sources are the same tokens")
    copies = lists.copies(q.shape[0] if q.dim() == 4 else 1, q.shape[-2])
    if lists.index.shape[0] != copies:
        raise ArgumentError(
            f"q must have the batch and heads that the lists were made for ({copies} copies, the lists have "
            f"{lists.index.shape[0]}), got shape {list(q.shape)}"
        )
    return q.dim() == 4
