"""Public function: validation that no backend may differ on, and choice of backend."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels._calls import check_channels
from graphattn_kernels._library import autocast, in_full
from graphattn_kernels._members import Members, batched, checked
from graphattn_kernels.errors import ArgumentError
from graphattn_kernels.relu_attention import ops
from graphattn_kernels.relu_attention.impl import reference

__all__ = ["relu_attention"]


def relu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    target_lengths: Tensor | None = None,
    source_lengths: Tensor | None = None,
    target_ptr: Tensor | None = None,
    source_ptr: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One hop over a complete graph whose weights are rectified scores over their Frobenius norm (InfSA, eq. 1).

    Under autocast the tensors are cast to its dtype. Nothing of the size T x S is made. A row of zeros in ``q`` or
    ``k`` has no weight and takes no part in the norm: any mask of tokens is ``q.masked_fill(~mask, 0.0)``.

    .. math::
        A_{tsh} = \\max\\Big(\\sigma \\sum_d q_{thd} k_{shd},\\ 0\\Big), \\qquad
        n_h = \\Big(\\sum_{ts} A_{tsh}^2\\Big)^{1/2}, \\qquad
        y_{th} = \\frac{1}{n_h + \\epsilon} \\sum_s A_{tsh}\\, v_{sh}

    Source: Roffo et al., "Self-Attention And Beyond the Infinite", arXiv 2603.00175.

    Args:
        q: ``[B, T, H, D]`` or ``[T, H, D]`` queries.
        k: ``[B, S, H, D]`` or ``[S, H, D]`` keys.
        v: ``[B, S, H, D_v]`` or ``[S, H, D_v]`` values.
        scale: Factor sigma of the product; default ``D ** -0.5``. Save for ``eps``, only its sign matters.
        causal: Target t reads the sources s <= t only (of its member).
        target_lengths: ``[B]`` targets of each batch entry, the rest is padding; default: all.
        source_lengths: ``[B]`` sources of each batch entry; default: all.
        target_ptr: ``[G + 1]`` with ``source_ptr`` and without a batch axis: member g has the targets ``target_ptr[g]``
            to ``target_ptr[g + 1] - 1``, reads its own sources only, and has a norm of its own. Begins with 0, ends
            with T, does not decrease (not checked: that would wait for the device).
        source_ptr: ``[G + 1]``: the same for sources.
        eps: Added to the norm.
        backend: ``"auto"``, ``"triton"``, ``"gather"`` (row by row in blocks, any device) or ``"reference"``.

    Returns:
        ``[B, T, H, D_v]`` in the dtype of ``v`` (padding and targets all of whose scores are negative get exactly 0),
        and the norms ``[B, H]`` (``[G, H]`` with ``target_ptr``, else ``[H]`` without a batch) in float32 (float64 for
        float64). Both are differentiable.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If types do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    members = Members(target_lengths, source_lengths, target_ptr, source_ptr)
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    name = checked(backend, q, k, v, members)
    check_channels(q)
    if not eps > 0.0:
        raise ArgumentError(f"eps must be positive, got {eps}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    with_batch = q.dim() == 4
    q, k, v = batched(q, k, v)
    if name == "reference":
        with in_full(q):
            out, norm = reference.relu_attention(q, k, v, members, scale, causal, eps)
    else:
        out, norm = ops.relu_attention(q, k, v, *members, scale, bool(causal), float(eps), name)
    if with_batch:
        return out, norm
    return out.squeeze(0), norm if target_ptr is not None else norm.squeeze(0)
