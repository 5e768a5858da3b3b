"""The network on top."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.errors import ArgumentError

__all__ = ["Readout"]


class Readout(nn.Module):
    """Linear layers with ReLU that halve the width at each step: ``w -> w/2 -> w/4 -> out``
    (Dwivedi & Bresson 2020, as in the benchmark's code).

    Args:
        width: Channels in.
        out_channels: Channels out.
        layers: Number of halvings.

    Raises:
        ArgumentError: If nothing is left of the width.
    """

    def __init__(self, width: int, out_channels: int, layers: int = 2) -> None:
        super().__init__()
        if width >> layers < 1:
            raise ArgumentError(f"width must be {1 << layers} or more, to be halved {layers} times, got {width}")
        self.hidden = nn.ModuleList(nn.Linear(width >> n, width >> (n + 1)) for n in range(layers))
        self.out = nn.Linear(width >> layers, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., out_channels]``."""
        for layer in self.hidden:
            x = layer(x).relu()
        return self.out(x)
