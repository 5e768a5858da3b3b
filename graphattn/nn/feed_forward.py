"""The position-wise network."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """:math:`W_2\\, \\mathrm{Dropout}(\\mathrm{ReLU}(W_1 x + b_1)) + b_2` (Dwivedi & Bresson 2020, eqs. 6-7).

    Args:
        width: Channels in and out.
        expansion: Hidden channels as a multiple of ``width``.
        dropout: On the hidden channels.
    """

    def __init__(self, width: int, expansion: float = 2.0, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = int(width * expansion)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., width]``."""
        return self.outer(self.dropout(self.inner(x).relu()))
