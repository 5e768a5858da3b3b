"""Long range for convolutional networks: attention on the complete graph of a coarse feature map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.attention import attend
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, patterns
from graphattn.mechanisms import MECHANISMS, Mechanism
from graphattn.mechanisms.base import head_width

__all__ = ["NonLocalBlock"]

GraphRule = Callable[[int, int, torch.device], TokenGraph]


class NonLocalBlock(nn.Module):
    """The non-local block (Wang et al., "Non-local Neural Networks", CVPR 2018, embedded Gaussian), on any token graph.

    .. math::
        Y = \\operatorname{softmax}(\\theta(X)\\, \\phi(X)^\\top)\\, g(X), \\qquad X' = X + \\mathrm{BN}(Y W_z)

    The tokens are the cells of the map; :math:`\\theta, \\phi, g` go to half the channels, the products are not scaled,
    and the norm's factor begins at 0 (without a norm: :math:`W_z` does), so that the block begins as the identity. Any
    mechanism of the library may stand in for the softmax: X goes to ``inner`` channels, through the mechanism, and back
    through :math:`W_z`. That ConnNet (arXiv 1804.07836) has such blocks is known from secondary sources; where they
    stand in its network, and how many, is unverified.

    Args:
        width: Channels of the map.
        inner: Channels of the embeddings; default: half of ``width``.
        heads: Attention heads; 1 in the paper.
        mechanism: ``"embedded_gaussian"``, the name of a mechanism (:func:`graphattn.list_mechanisms`), or one of
            ``inner`` channels.
        graph: ``"complete"``, or a function of (height, width, device) that gives the graph, e.g. ``lambda h, w, d:
            patterns.grid(h, w, 3, device=d) | patterns.hubs(h * w, 4, device=d)``.
        scale: Factor of the products; ``None``: the root of a head's channels, inverted. 1 in the standard block. Only
            for ``"embedded_gaussian"``.
        norm: ``"batch"``, or ``None``.
        mechanism_options: Further arguments of a mechanism given by name.

    Raises:
        ArgumentError: If an argument is unknown or does not fit.
    """

    def __init__(
        self,
        width: int,
        inner: int | None = None,
        *,
        heads: int = 1,
        mechanism: str | Mechanism = "embedded_gaussian",
        graph: str | GraphRule = "complete",
        scale: float | None = 1.0,
        norm: str | None = "batch",
        mechanism_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        inner = max(1, width // 2) if inner is None else inner
        head_width(inner, heads)
        if norm not in ("batch", None):
            raise ArgumentError(f"norm must be 'batch' or None, got {norm!r}")
        if isinstance(graph, str) and graph != "complete":
            raise ArgumentError(f"graph must be 'complete' or a function of (height, width, device), got {graph!r}")
        if mechanism_options and (isinstance(mechanism, Mechanism) or mechanism == "embedded_gaussian"):
            raise ArgumentError(f"mechanism_options go with a mechanism given by name only, got {mechanism_options}")
        self.width, self.inner, self.heads, self.scale, self.graph = width, inner, heads, scale, graph
        self.attention: Mechanism | None = None
        if isinstance(mechanism, Mechanism):
            self.attention = mechanism
        elif mechanism != "embedded_gaussian":
            self.attention = MECHANISMS.get(mechanism)(inner, heads, **(mechanism_options or {}))  # type: ignore[call-arg]
        self.embed = nn.Linear(width, inner if self.attention is not None else 3 * inner)
        self.out = nn.Linear(inner, width)
        self.norm = nn.BatchNorm2d(width) if norm == "batch" else None
        self.reset_gate()

    def reset_gate(self) -> None:
        """Make the block the identity."""
        if self.norm is not None:
            nn.init.zeros_(self.norm.weight)
            nn.init.zeros_(self.norm.bias)
        else:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width, H, W]`` to the same shape.

        Raises:
            ArgumentError: If the shape does not fit.
        """
        if x.dim() != 4 or x.shape[1] != self.width:
            raise ArgumentError(f"x must be [B, {self.width}, H, W], got {list(x.shape)}")
        height, width = x.shape[-2:]
        graph = self._graph(height, width, x.device)
        rows = self.embed(x.flatten(2).mT)
        if self.attention is not None:
            rows, _ = self.attention(rows, graph)
        else:
            q, k, v = rows.unflatten(-1, (3, self.heads, self.inner // self.heads)).unbind(-3)
            mixed = attend(graph, q, k, v, scale=self.scale)
            assert isinstance(mixed, Tensor)
            rows = mixed.flatten(-2)
        step = self.out(rows).mT.unflatten(-1, (height, width))
        return x + (step if self.norm is None else self.norm(step))

    def _graph(self, height: int, width: int, device: torch.device) -> TokenGraph:
        if isinstance(self.graph, str):
            return patterns.complete(height * width, device=device)
        graph = self.graph(height, width, device)
        if graph.num_tokens != height * width:
            raise ArgumentError(
                f"graph must have a token for each cell, {height} x {width}, got one of {graph.num_tokens} tokens"
            )
        return graph

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, inner={self.inner}, heads={self.heads}"
