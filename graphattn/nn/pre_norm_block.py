"""The block of vision transformers, around any mechanism."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import Mechanism
from graphattn.nn.feed_forward import FeedForward

__all__ = ["DropPath", "PreNormBlock"]

_NORMS: dict[str, Any] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class PreNormBlock(nn.Module):
    """Norm, attention, residual, norm, feed-forward, residual (Dosovitskiy et al., arXiv 2010.11929, eqs. 2-3).

    .. math::
        x' = x + \\gamma_1 \\odot \\mathrm{attention}(\\mathrm{norm}(x)), \\qquad
        x'' = x' + \\gamma_2 \\odot \\mathrm{FFN}(\\mathrm{norm}(x'))

    Args:
        attention: Any mechanism.
        width: Channels of a token row.
        mlp_ratio: Hidden channels of the feed-forward network (GELU) as a multiple of ``width``.
        dropout: On the hidden channels and the output of the feed-forward network.
        drop_path: Probability that an example of a batch skips a half of the block (arXiv 1603.09382).
        init_values: Initial value of the scales gamma (LayerScale, arXiv 2103.17239); ``None``: there are none.
        mixer_projection: A further linear map ``[width, width]`` after the mechanism
            (see :func:`graphattn.models.infvit.infvit_4`).
        norm: ``"layer"`` or ``"rms"`` (:class:`torch.nn.RMSNorm`).

    Raises:
        ArgumentError: If there is no such norm.
    """

    def __init__(
        self,
        attention: Mechanism,
        width: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        init_values: float | None = None,
        mixer_projection: bool = False,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ArgumentError(f"norm must be one of {sorted(_NORMS)}, got {norm!r}")
        self.norm1 = _NORMS[norm](width, eps=1e-6)
        self.attn = attention
        self.mixer = nn.Linear(width, width) if mixer_projection else nn.Identity()
        self.norm2 = _NORMS[norm](width, eps=1e-6)
        self.mlp = FeedForward(width, mlp_ratio, dropout, activation="gelu")
        self.mlp_dropout = nn.Dropout(dropout)
        self.scale1 = None if init_values is None else nn.Parameter(torch.full((width,), init_values))
        self.scale2 = None if init_values is None else nn.Parameter(torch.full((width,), init_values))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None, **options: Any) -> Tensor:
        """New token rows ``[B, N, width]``, on one graph for all B (or one for each).

        Args:
            x: Token rows.
            graph: Who reads whom.
            edge: Edge rows, for mechanisms that use them.
            **options: Further arguments of the mechanism.
        """
        step = self.mixer(self.attn(self.norm1(x), graph, edge, **options)[0])
        x = x + self.drop_path(step if self.scale1 is None else step * self.scale1)
        step = self.mlp_dropout(self.mlp(self.norm2(x)))
        return x + self.drop_path(step if self.scale2 is None else step * self.scale2)


class DropPath(nn.Module):
    """Stochastic depth: zeroes whole examples while training and scales the others up (Huang et al., arXiv 1603.09382).

    Args:
        p: Probability of zeroing an example, 0 to 1 (1 excluded).

    Raises:
        ArgumentError: If ``p`` is out of range.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ArgumentError(f"drop_path must be a probability in 0..1, 1 excluded, got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ...]`` to ``[B, ...]``."""
        if self.p == 0.0 or not self.training:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.p
        return x * (kept.to(x.dtype) / (1.0 - self.p))

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"p={self.p:g}"
