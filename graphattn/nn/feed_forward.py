"""The position-wise network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.errors import ArgumentError

__all__ = ["FeedForward"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"elu": F.elu, "gelu": F.gelu, "relu": F.relu}


class FeedForward(nn.Module):
    """:math:`W_2\\, \\mathrm{Dropout}(\\mathrm{ReLU}(W_1 x + b_1)) + b_2` (Dwivedi & Bresson 2020, eqs. 6-7).

    Args:
        width: Channels in and out.
        expansion: Hidden channels as a multiple of ``width``.
        dropout: On the hidden channels.
        activation: ``"relu"``, ``"gelu"`` or ``"elu"``.

    Raises:
        ArgumentError: If there is no such activation.
    """

    def __init__(self, width: int, expansion: float = 2.0, dropout: float = 0.0, activation: str = "relu") -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ArgumentError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")
        hidden = int(width * expansion)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., width]``."""
        return self.outer(self.dropout(_ACTIVATIONS[self.activation](self.inner(x))))
