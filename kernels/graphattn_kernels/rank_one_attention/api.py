"""Public function: validation that no backend may differ on, and choice of backend."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from graphattn_kernels._library import autocast, in_full
from graphattn_kernels._members import Members, batched, checked
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError
from graphattn_kernels.rank_one_attention import ops
from graphattn_kernels.rank_one_attention.impl import reference

__all__ = ["rank_one_attention"]


def rank_one_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    target_lengths: Tensor | None = None,
    source_lengths: Tensor | None = None,
    target_ptr: Tensor | None = None,
    source_ptr: Tensor | None = None,
    eps: float = 1e-6,
    factor: float = 1.0,
    spread: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The one row that all targets read in attention of rank one over a complete graph (Linear-InfSA).

    One power step from the lengths of the queries towards the left Perron vector of the rectified scores. Each input is
    read once. A row of zeros in ``q`` or ``k`` has no weight: any mask of tokens is ``q.masked_fill(~mask, 0.0)``.
    Under autocast the tensors are cast to its dtype. With q and k multiplied by the root of ``scale``:

    .. math::
        \\bar q = \\frac{\\sum_t \\lVert q_t \\rVert q_t}{\\sum_t \\lVert q_t \\rVert + \\epsilon}, \\qquad
        a_s = \\max(\\langle \\bar q, k_s \\rangle, 0), \\qquad
        c = \\frac{\\sum_s a_s v_s}{\\sum_s a_s + \\epsilon}

    Source: Roffo et al., arXiv 2603.00175.

    Args:
        q: ``[B, T, H, D]`` or ``[T, H, D]`` queries.
        k: ``[B, S, H, D]`` or ``[S, H, D]`` keys.
        v: ``[B, S, H, D_v]`` or ``[S, H, D_v]`` values.
        scale: Positive factor of the product q k, matters only beside ``eps``; default ``D ** -0.5``.
        target_lengths: ``[B]`` targets of each batch entry, the rest is padding; default: all.
        source_lengths: ``[B]`` sources of each batch entry; default: all.
        target_ptr: ``[G + 1]`` with ``source_ptr`` and without a batch axis: member g has the targets ``target_ptr[g]``
            to ``target_ptr[g + 1] - 1`` and reads its own sources only. Begins with 0, ends with T, does not decrease
            (not checked: that would wait for the device).
        source_ptr: ``[G + 1]``: the same for sources.
        eps: Added to both sums.
        factor: Of the result c, gamma in the source.
        spread: Return a row for each target, without a copy of c (padding reads it, too); not with ``target_ptr``. Its
            gradient is summed over the targets.
        backend: ``"auto"``, ``"triton"``, ``"gather"`` (plain PyTorch, any device) or ``"reference"``.

    Returns:
        ``[B, H, D_v]`` (``[G, H, D_v]`` with ``target_ptr``, else ``[H, D_v]`` without a batch) in the dtype of ``v``:
        a row for every member, the same for each of its targets; with ``spread`` these, ``[B, T, H, D_v]``. 0 where no
        source is positive.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If types do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    members = Members(target_lengths, source_lengths, target_ptr, source_ptr)
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    name = checked(backend, q, k, v, members)
    scale = max(1, q.shape[-1]) ** -0.5 if scale is None else float(scale)
    if not (scale > 0.0 and eps > 0.0):
        raise ArgumentError(f"scale and eps must be positive, got {scale} and {eps}")
    if not isinstance(factor, Real):
        raise ArgumentTypeError(
            f"factor must be a number, got {type(factor).__name__}; multiply the result by a tensor"
        )
    if spread and target_ptr is not None:
        raise ArgumentError("spread must be False where members are given by ptr, got True")
    has_batch = q.dim() == 4 or target_ptr is not None
    q, k, v = batched(q, k, v)
    # Multiplying q and k by a number is dividing both eps.
    eps_q, eps_k = eps / scale**0.5, eps / scale
    if name == "reference":
        with in_full(q):
            out = reference.rank_one_attention(q, k, v, members, eps_q, eps_k, factor)
            out = ops.spread_rows(out, q) if spread else out
    else:
        out = ops.rank_one_attention(q, k, v, *members, eps_q, eps_k, float(factor), bool(spread), name)
    return out if has_batch else out.squeeze(0)
