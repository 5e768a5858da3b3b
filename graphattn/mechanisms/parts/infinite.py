"""What the two forms of infinite self-attention share: projections, a learned discount, a mask of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.mechanisms.base import Mechanism, head_width
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["Decay", "InfiniteAttention"]


class Decay(nn.Module):
    """A factor in (0, 1) for each head, :math:`\\gamma_h = \\operatorname{sigmoid}(\\theta_h)`.

    Args:
        heads: H.
        initial: The factor before training.
        learn: Whether theta is a parameter.

    Raises:
        ArgumentError: If initial is not between 0 and 1.
    """

    def __init__(self, heads: int, initial: float = 0.95, learn: bool = True) -> None:
        super().__init__()
        if not 0.0 < initial < 1.0:
            raise ArgumentError(f"gamma must lie between 0 and 1, got {initial}")
        self.initial = initial
        theta = torch.empty(heads)
        if learn:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the initial factor."""
        with torch.no_grad():
            self.theta.fill_(math.log(self.initial / (1.0 - self.initial)))

    def forward(self) -> Tensor:
        """``[H]``, in float32 for half types."""
        return self.theta.to(accumulate_dtype(self.theta.dtype)).sigmoid()


class InfiniteAttention(Mechanism):
    """Queries, keys and values of heads, a discount of each head, an output projection.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        gamma: The discount before training.
        learn_gamma: Learn it, for each head.
        bias: Give the projections a bias.
        eps: Added to norms and sums.
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the weights.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        gamma: float,
        learn_gamma: bool,
        bias: bool,
        eps: float,
        dropout: float,
        attention_dropout: float,
        backend: str,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.head_width = width, heads, head_width(width, heads)
        self.eps, self.attention_dropout, self.backend = eps, attention_dropout, backend
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.gamma = Decay(heads, gamma, learn_gamma)
        self.dropout = nn.Dropout(dropout)
        self._draw_projections()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew (Xavier-uniform and zeros, as in the released code)."""
        self._draw_projections()
        self.gamma.reset_parameters()

    def _draw_projections(self) -> None:
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def _project(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[..., N, H, D]``, zero for tokens that the mask leaves out: then they have no
        weight, and no part in a norm or a sum."""
        q, k, v = (p(x).unflatten(-1, (self.heads, self.head_width)) for p in (self.query, self.key, self.value))
        if mask is None:
            return q, k, v
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ArgumentError(f"mask must be bool {list(x.shape[:-1])}, one entry for each token, got {got}")
        outside = ~mask[..., None, None]
        return q.masked_fill(outside, 0.0), k.masked_fill(outside, 0.0), v.masked_fill(outside, 0.0)
