"""The decoder: a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeaturePyramid"]


class FeaturePyramid(nn.Module):
    """Coarse feature maps are enlarged and added to finer ones, level by level (Lin et al., arXiv 1612.03144), with two
    convolutions after each sum.

    Args:
        channels: Of the encoder's maps, fine to coarse.
        widths: Of the decoder's maps, fine to coarse; one for each.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, widths, strict=True))
        coarser = [*widths[1:], widths[-1]]
        self.narrow = nn.ModuleList(
            nn.Identity() if above == width else nn.Conv2d(above, width, 1)
            for above, width in zip(coarser, widths, strict=True)
        )
        self.smooth = nn.ModuleList(nn.Sequential(*_conv(width), *_conv(width)) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The finest map, ``[B, widths[0], h, w]``, of the encoder's maps."""
        x: Tensor | None = None
        for n in reversed(range(len(self.lateral))):
            side = self.lateral[n](maps[n])
            if x is not None:
                # Narrowed before it is enlarged: the same function, on a quarter of the pixels.
                x = F.interpolate(self.narrow[n](x), size=side.shape[-2:], mode="bilinear", align_corners=False)
                side = side + x
            x = self.smooth[n](side)
        assert x is not None
        return x


def _conv(width: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
