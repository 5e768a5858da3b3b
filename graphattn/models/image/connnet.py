"""ConnNet: segmentation as connectivity between neighbouring pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.models.image.backbone import ConvBackbone, feature_levels, features_of
from graphattn.models.image.heads import Reading, check_head, num_logits, read_logits
from graphattn.models.image.pyramid import FeaturePyramid
from graphattn.nn.non_local import NonLocalBlock

__all__ = ["ConnNet"]

# The share of logits that should say yes before training (Lin et al., focal loss, arXiv 1708.02002, section 4.1). From
# a half, the many pixels that say no can leave features that are 0 wherever one should say yes, for good
# (experiments/results/h200-connnet).
_PRIOR = 0.2


class ConnNet(nn.Module):
    """An encoder and a feature pyramid that predict, for each pixel, whether it belongs together with each of its
    neighbours (Kampffmeyer et al., "ConnNet: A Long-Range Relation-Aware Pixel-Connectivity Network for Salient
    Segmentation", arXiv 1804.07836, IEEE TIP 28(5), 2019), or, as a baseline, whether it is foreground.

    No code is published, and the text of the paper could not be read here: that the long-range module stands at the top
    of the encoder, and the threshold of agreement (0.5), are unverified. The encoder is our own.

    Args:
        in_channels: Channels of a photograph.
        head: ``"connectivity"``: a logit for each pixel and neighbour; ``"instances"``: the same logits, read and
            trained as "of one object" instead of "both foreground"; ``"binary"``: one logit for each pixel.
        num_classes: 1: foreground and background. More: a head for each class, the background counted as class 0; not
            with ``"instances"``.
        neighbours: 8 or 4.
        backbone: Any encoder that returns a list of feature maps, fine to coarse (timm's with ``features_only=True``);
            ``None``: :class:`~graphattn.models.image.backbone.ConvBackbone`.
        backbone_options: Arguments of our own one.
        width: Channels of the pyramid's finest map; coarser ones have twice as many each, up to 4 x ``width``.
        long_range: ``None``; ``"non_local"`` (embedded Gaussian, arXiv 1711.07971); or the name of any mechanism
            (:func:`graphattn.list_mechanisms`), on the complete graph of the coarsest map.
        long_range_options: Further arguments of :class:`graphattn.nn.NonLocalBlock`, ``{"heads": 4}`` say.

    Raises:
        ArgumentError: If the arguments contradict each other.
    """

    def __init__(
        self,
        in_channels: int = 3,
        head: str = "connectivity",
        num_classes: int = 1,
        neighbours: int = 8,
        *,
        backbone: nn.Module | None = None,
        backbone_options: dict[str, Any] | None = None,
        width: int = 24,
        long_range: str | None = None,
        long_range_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_head(head, num_classes, neighbours)
        if backbone is not None and backbone_options:
            raise ArgumentError(f"backbone_options go with our own backbone only, got {backbone_options}")
        if long_range is None and long_range_options:
            raise ArgumentError(f"long_range_options go with long_range only, got {long_range_options}")
        self.head, self.num_classes, self.neighbours = head, num_classes, neighbours
        self.backbone = ConvBackbone(in_channels, **(backbone_options or {})) if backbone is None else backbone
        levels = feature_levels(self.backbone, in_channels)
        self.in_channels, self.channels = in_channels, [level.channels for level in levels]
        self.stride = levels[-1].stride
        self.long_range: nn.Module = nn.Identity()
        if long_range is not None:
            mechanism = "embedded_gaussian" if long_range == "non_local" else long_range
            self.long_range = NonLocalBlock(levels[-1].channels, mechanism=mechanism, **(long_range_options or {}))
        widths = [min(2**n, 4) * width for n in range(len(levels))]
        self.pyramid = FeaturePyramid(self.channels, widths)
        self.predict = nn.Conv2d(width, num_logits(head, num_classes, neighbours), 3, padding=1)
        nn.init.normal_(self.predict.weight, std=0.01)
        assert self.predict.bias is not None
        nn.init.constant_(self.predict.bias, math.log(_PRIOR / (1.0 - _PRIOR)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of photographs ``[B, in_channels, H, W]`` of any size: ``[B, num_classes, H, W]`` (binary), or
        ``[B, num_classes * neighbours, H, W]``, the channels of a class together, in the order of
        :mod:`graphattn.mechanisms.connectivity`.

        Raises:
            ArgumentError: If the photographs have other channels, or the backbone's maps do.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ArgumentError(f"x must be photographs [B, {self.in_channels}, H, W], got shape {list(x.shape)}")
        height, width = x.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        if below or right:  # the border goes on, so that it is no edge
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        if x.is_cuda:
            x = x.contiguous(memory_format=torch.channels_last)
        maps = features_of(self.backbone, x, self.channels)
        maps[-1] = self.long_range(maps[-1])
        fine = self.pyramid(maps)
        if fine.shape[-2:] != x.shape[-2:]:  # backbones that start coarser than the photograph
            fine = F.interpolate(fine, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.predict(fine)[..., :height, :width]

    def read(self, logits: Tensor, at: float = 0.5) -> Reading:
        """Masks, saliency and instances from logits; see :func:`graphattn.models.image.heads.read_logits`."""
        return read_logits(logits, self.head, self.num_classes, self.neighbours, at=at)

    @torch.no_grad()
    def segment(self, x: Tensor, at: float = 0.5) -> Reading:
        """Masks, saliency and instances of photographs, in evaluation mode or not as the model is."""
        return self.read(self(x).float(), at)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"head={self.head!r}, num_classes={self.num_classes}, neighbours={self.neighbours}"
