"""Encoders that give a list of feature maps: our own small one, and what is needed to use anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError

__all__ = ["ConvBackbone", "Level", "feature_levels", "features_of"]


class Level(NamedTuple):
    """One feature map of an encoder.

    Args:
        channels: Of it.
        stride: Pixels of the photograph between two of its pixels.
    """

    channels: int
    stride: int


class ConvBackbone(nn.Module):
    """A small residual encoder (He et al., arXiv 1512.03385, basic blocks) that starts at full resolution, so that what
    is one pixel thin is not lost: 0.97 M parameters by default.

    Args:
        in_channels: Channels of a photograph.
        widths: Channels of each feature map; the first has the photograph's size, each further one half of it.
        depth: Blocks for each.

    Raises:
        ArgumentError: If there are no widths.
    """

    def __init__(self, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64, 96, 128), depth: int = 2) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or depth < 1:
            raise ArgumentError(f"widths and depth must be 1 or more, got {list(widths)} and {depth}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        )
        before = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Residual(inner, width, stride=1 if n == 0 else 2), *(_Residual(width, width) for _ in range(depth - 1))
            )
            for n, (inner, width) in enumerate(zip(before, widths, strict=True))
        )
        self.feature_info = [{"num_chs": width, "reduction": 2**n} for n, width in enumerate(widths)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps ``[B, widths[n], H / 2^n, W / 2^n]`` of ``[B, in_channels, H, W]``."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _Residual(nn.Module):
    """Two convolutions 3 x 3 beside the identity."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer))
        self.second = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
        self.beside: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.beside = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.beside(x))


def features_of(backbone: nn.Module, x: Tensor, channels: Sequence[int] | None = None) -> list[Tensor]:
    """The feature maps of any encoder, largest first: a list or tuple, or the values of a dict.

    Args:
        backbone: The encoder.
        x: ``[B, in_channels, H, W]``.
        channels: Of each map, where they are known.

    Raises:
        ArgumentError: If it returns something else, or maps of other channels.
    """
    found = backbone(x)
    maps = list(found.values()) if isinstance(found, dict) else list(found)
    if not maps or any(not isinstance(m, Tensor) or m.dim() != 4 for m in maps):
        raise ArgumentError(
            f"backbone must return a list of feature maps [B, C, H, W], got {type(found).__name__} from "
            f"{type(backbone).__name__}; timm's models do with features_only=True"
        )
    if channels is not None and [m.shape[1] for m in maps] != list(channels):
        raise ArgumentError(
            f"backbone must return maps of {list(channels)} channels, which stand first ([B, C, H, W]), got shapes "
            f"{[list(m.shape) for m in maps]}; permute maps whose channels stand last (timm's Swin)"
        )
    return maps


def feature_levels(backbone: nn.Module, in_channels: int) -> list[Level]:
    """Channels and strides of an encoder's feature maps: from its ``feature_info`` (timm's, or a list of such dicts),
    or seen in the maps of a blank photograph of 64 x 64 pixels.

    Args:
        backbone: Any module that takes ``[B, in_channels, H, W]``.
        in_channels: Channels of a photograph.

    Raises:
        ArgumentError: If it returns no feature maps, or they are not from fine to coarse.
    """
    info: Any = getattr(backbone, "feature_info", None)
    if info is not None and callable(getattr(info, "channels", None)):
        levels = [Level(*pair) for pair in zip(info.channels(), info.reduction(), strict=True)]
    elif info is not None:
        levels = [Level(entry["num_chs"], entry["reduction"]) for entry in info]
    else:
        levels = _looked_at(backbone, in_channels)
    strides = [level.stride for level in levels]
    if strides != sorted(set(strides)):
        raise ArgumentError(f"backbone must return feature maps from fine to coarse, got strides {strides}")
    return levels


def _looked_at(backbone: nn.Module, in_channels: int, side: int = 64) -> list[Level]:
    like = next(iter(backbone.parameters()), torch.zeros(()))
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()  # the blank photograph must not enter statistics
    try:
        with torch.no_grad():
            maps = features_of(backbone, torch.zeros(1, in_channels, side, side, device=like.device, dtype=like.dtype))
    finally:
        for module, mode in modes:
            module.training = mode
    if any(m.shape[-2] != m.shape[-1] for m in maps):  # of a square
        raise ArgumentError(
            f"backbone must return square maps [B, C, H, W] of a square photograph, got shapes "
            f"{[list(m.shape) for m in maps]}; permute maps whose channels stand last (timm's Swin)"
        )
    return [Level(m.shape[1], side // m.shape[-1]) for m in maps]
