"""What the operation computes from: one tuple that every implementation takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype

__all__ = ["NUM_GRADIENTS", "SCHEMA", "Inputs", "contiguous_like"]


class Inputs(NamedTuple):
    """Tensors and options of a call, checked by the API; see :func:`csr_attention` there for their meaning."""

    q: Tensor
    """``[T, H, D]``."""
    k: Tensor
    """``[S, H, D]``."""
    v: Tensor
    """``[S, H, D_v]``."""
    edge_bias: Tensor | None
    """``[E, H]``, possibly expanded over heads."""
    edge_gate: Tensor | None
    """``[E, H, D]``."""
    edge_rows: Tensor | None
    """``[E, H, D]``, dot score only; D is then D_v, and there is neither gate nor product."""
    att: Tensor | None
    """``[H, D]``, additive score only; ``None``: ones."""
    dropout_seed: Tensor | None
    """int64 ``[2]`` where ``dropout_p > 0``."""
    scale: float
    clamp: float | None
    negative_slope: float | None
    """``None``: dot score; else the additive score with this slope of the LeakyReLU."""
    dropout_p: float
    need_product: bool
    """Whether the product of each edge is wanted (dot score only)."""

    @property
    def additive(self) -> bool:
        """Whether the score is additive."""
        return self.negative_slope is not None

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return accumulate_dtype(self.q.dtype)

    @property
    def heads(self) -> int:
        """H."""
        return self.q.shape[1]

    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The inputs that have a gradient, in the order of the gradients."""
        return self.q, self.k, self.v, self.edge_bias, self.edge_gate, self.edge_rows, self.att

    def new_product(self, num_edges: int) -> Tensor | None:
        """Uninitialised memory for the product ``[E, H, D]``, where it is wanted."""
        return self.q.new_empty((num_edges, *self.q.shape[1:])) if self.need_product else None


NUM_GRADIENTS = 7

# The arguments that stand for Inputs in an operator's schema, in order.
SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor? edge_bias, Tensor? edge_gate, Tensor? edge_rows, Tensor? att, "
    "Tensor? dropout_seed, float scale, float? clamp, float? negative_slope, float dropout_p, bool need_product"
)


def contiguous_like(x: Tensor | None) -> Tensor | None:
    """Uninitialised memory for the gradient of ``x``."""
    return None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
