"""What attention returns where more than the output is asked for, and how partial results combine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError

__all__ = ["AttentionOutput", "merge"]


class AttentionOutput(NamedTuple):
    """What :func:`graphattn.attend` returns where more than the output is asked for."""

    out: Tensor
    """``[..., T, H, D_v]``."""
    weights: Tensor | None = None
    """``[..., E, H]`` before dropout, in the caller's edge order, if ``need_weights``."""
    lse: Tensor | None = None
    """``[..., T, H]`` log-sum-exp of the scores, -inf for a target without edges, if ``need_lse``."""
    product: Tensor | None = None
    """``[..., E, H, D]``: scale * q * k * edge_gate of each edge, before bias and clamp, in the caller's edge order, if
    ``need_product``."""


def merge(parts: Sequence[AttentionOutput | tuple[Tensor, Tensor]]) -> AttentionOutput:
    """Combine softmax attention over disjoint edge sets of the same targets, exactly.

    .. math:: l = \\log \\sum_i e^{l_i}, \\qquad y = \\sum_i e^{l_i - l} y_i

    Args:
        parts: Outputs with ``need_lse=True``, or pairs (out ``[..., T, H, D]``, lse ``[..., T, H]``).

    Returns:
        Output and lse over the union of the edges; 0 and -inf where every part was empty.

    Raises:
        ArgumentError: If there is no part, or one without an lse.
    """
    if not parts:
        raise ArgumentError("parts must hold at least one (out, lse) pair, got none")
    outs, lses = zip(
        *((part.out, part.lse) if isinstance(part, AttentionOutput) else part for part in parts), strict=True
    )
    if any(lse is None for lse in lses):
        raise ArgumentError("parts must come from attend(..., need_lse=True); one has no lse")
    shape = outs[0].shape
    if any(out.shape != shape or lse.shape != shape[:-1] for out, lse in zip(outs, lses, strict=True)):
        got = [(list(out.shape), list(lse.shape)) for out, lse in zip(outs, lses, strict=True)]
        raise ArgumentError(f"parts must have one shape, out [..., T, H, D_v] and lse [..., T, H], got {got}")
    lse = torch.stack(lses)
    empty = (lse == float("-inf")).all(0)
    # Where every part is empty, any finite number keeps the exponentials, and their gradients, at zero.
    total = lse.masked_fill(empty, 0.0).logsumexp(0)
    out = ((lse - total).exp().unsqueeze(-1) * torch.stack(outs)).sum(0)
    return AttentionOutput(out.to(outs[0].dtype), None, total.masked_fill(empty, float("-inf")))
