"""Random changes of training photographs and of their masks together, on whole batches and on the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.transforms import BaseTransform

from graphattn.errors import ArgumentError

__all__ = ["AugmentSegmentation"]


class AugmentSegmentation(BaseTransform):
    """A random crop, scale, flip, quarter turn and colour of each photograph, the same for its mask.

    All changes of place are one resampling: bilinear for photographs, the nearest label for masks. Without ``scale``
    pixels are moved, not mixed.

    Args:
        crop: Height and width of what is cut out; ``None``: of the batch.
        scale: Smallest and largest magnification.
        flip: Mirror half of the photographs left to right.
        vertical_flip: Mirror half of them top to bottom.
        turn: Turn by 0, 90, 180 or 270 degrees (for pictures without an upright direction).
        brightness: Largest shift of all channels, in deviations of ImageNet.
        contrast: Largest relative change of contrast, about the mean of the photograph.
        colour: Largest shift of each channel on its own, in deviations of ImageNet.

    Raises:
        ArgumentError: If an argument is out of range.
    """

    def __init__(
        self,
        crop: list[int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        flip: bool = True,
        vertical_flip: bool = False,
        turn: bool = False,
        brightness: float = 0.0,
        contrast: float = 0.0,
        colour: float = 0.0,
    ) -> None:
        if crop is not None and (len(crop) != 2 or min(crop) < 1):
            raise ArgumentError(f"crop must be height and width, got {crop}")
        if not 0.0 < scale[0] <= scale[1]:
            raise ArgumentError(f"scale must be 0 < smallest <= largest, got {tuple(scale)}")
        if min(brightness, contrast, colour) < 0 or contrast >= 1:
            raise ArgumentError(
                f"brightness, contrast and colour must be 0 or more, contrast below 1, got {brightness}, {contrast}, "
                f"{colour}"
            )
        self.crop, self.scale, self.flip, self.vertical_flip, self.turn = crop, scale, flip, vertical_flip, turn
        self.brightness, self.contrast, self.colour = brightness, contrast, colour

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """Another batch of :class:`~graphattn.training.SegmentationDataModule`; randomness from torch's global
        generator. What lies beyond a photograph is 0 in ``x`` and -1 in ``y``."""
        x, y = data["x"], data["y"]
        size = data.get("size")
        size = [tuple(x.shape[-2:])] * x.shape[0] if size is None else size
        crop = tuple(self.crop or x.shape[-2:])
        grid, inside = self._grid(torch.tensor(size, device=x.device), crop, x.shape[-2:])
        moved = F.grid_sample(x.float(), grid, mode="bilinear", align_corners=False).to(x.dtype)
        labels = F.grid_sample((y + 1).unsqueeze(1).float(), grid, mode="nearest", align_corners=False)
        labels = labels.squeeze(1).round().long() - 1
        return {**data, "x": self._coloured(moved, inside.unsqueeze(1)), "y": labels, "size": [crop] * x.shape[0]}

    def _grid(self, size: Tensor, crop: tuple[int, ...], whole: torch.Size) -> tuple[Tensor, Tensor]:
        """Where in the batch each pixel of the result is read, ``[B, h, w, 2]``, x first, in -1..1; and which are of
        the photograph, bool ``[B, h, w]``."""
        count, device = size.shape[0], size.device
        low, high = self.scale
        zoom = low + (high - low) * torch.rand(count, device=device)
        turns = torch.randint(0, 4 if self.turn else 1, (count,), device=device)
        signs = 1 - 2 * torch.randint(0, 2, (count, 2), device=device)
        signs = torch.where(torch.tensor([self.vertical_flip, self.flip], device=device), signs, 1)
        extent = torch.tensor(crop, device=device).expand(count, 2)  # of what is read, in its own pixels
        extent = torch.where((turns % 2 == 1)[:, None], extent.flip(1), extent) / zoom[:, None]
        slack = size - extent
        offset = torch.rand(count, 2, device=device) * (slack + 1).clamp(min=1)
        offset = offset.minimum(slack).where(slack > 0, slack / 2).floor()  # whole pixels
        centre = offset + extent / 2

        rows, columns = (torch.arange(n, device=device) + 0.5 - n / 2 for n in crop)
        y, x = (t[None].expand(count, -1, -1) for t in torch.meshgrid(rows, columns, indexing="ij"))
        y, x = y * signs[:, :1, None], x * signs[:, 1:, None]
        cosine = torch.tensor([1, 0, -1, 0], device=device)[turns].view(-1, 1, 1)
        sine = torch.tensor([0, 1, 0, -1], device=device)[turns].view(-1, 1, 1)
        zoomed = zoom.view(-1, 1, 1)
        source_y = (cosine * y - sine * x) / zoomed + centre[:, :1, None]
        source_x = (sine * y + cosine * x) / zoomed + centre[:, 1:, None]
        inside = (source_y > 0) & (source_y < size[:, :1, None]) & (source_x > 0) & (source_x < size[:, 1:, None])
        return torch.stack([2 * source_x / whole[1] - 1, 2 * source_y / whole[0] - 1], dim=-1), inside

    def _coloured(self, x: Tensor, inside: Tensor) -> Tensor:
        count, channels = x.shape[:2]

        def draw(most: float, *shape: int) -> Tensor:
            return (2 * torch.rand(count, *shape, 1, 1, device=x.device) - 1) * most

        if self.contrast:
            pixels = channels * inside.sum((1, 2, 3), keepdim=True).clamp(min=1)
            mean = x.where(inside, 0.0).sum((1, 2, 3), keepdim=True) / pixels
            x = mean + (x - mean) * (1 + draw(self.contrast, 1))
        if self.brightness:
            x = x + draw(self.brightness, 1)
        x = x + draw(self.colour, channels) if self.colour else x
        return x.where(inside, 0.0)
