"""Scores of pairs of rows."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.errors import ArgumentError

__all__ = ["LinkDecoder"]


class LinkDecoder(nn.Module):
    r"""A score of two rows, the same both ways: :math:`\mathrm{MLP}(a \odot b)` (OGB's baseline for links).

    Args:
        channels: Channels of a row.
        width: Channels of hidden layers; ``None``: as many.
        layers: Linear layers, at least 1.
        dropout: After each hidden layer.

    Raises:
        ArgumentError: If ``layers`` is below 1.
    """

    def __init__(self, channels: int, width: int | None = None, layers: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        if layers < 1:
            raise ArgumentError(f"layers must be at least 1, got {layers}")
        sizes = [channels, *[width or channels] * (layers - 1), 1]
        steps: list[nn.Module] = []
        for n in range(layers):
            steps.append(nn.Linear(sizes[n], sizes[n + 1]))
            if n < layers - 1:
                steps += [nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*steps)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Scores ``[B]`` of rows ``a`` and ``b``, ``[B, channels]``."""
        return self.layers(a * b).squeeze(-1)
