"""Neighbourhood attention on a grid: the square of cells that is read never leaves the grid."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.grid_rule import columns_of
from graphattn.graph.pattern import Pattern
from graphattn.graph.rules import Device

__all__ = ["Neighbourhood"]


class Neighbourhood(Pattern):
    """Every cell reads the cells around it, as many at a border as inside. Made by :func:`neighbourhood`."""

    _static_fields = (*Pattern._static_fields, "height", "width", "size")

    def __init__(self, height: int, width: int, size: int, device: Device) -> None:
        super().__init__(height * width, height * width, device=device)
        self.height = height
        self.width = width
        self.size = size

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        down = self._reads(target // self.width, source // self.width, self.height)
        return down & self._reads(target % self.width, source % self.width, self.width)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        rows = [place // self.width for place in (t_first, t_last, s_first, s_last)]
        columns = (*columns_of(t_first, t_last, self.width), *columns_of(s_first, s_last, self.width))
        (down, every_down), (right, every_right) = self._along(self.height, *rows), self._along(self.width, *columns)
        return down & right, every_down & every_right

    def _along(self, size: int, t_low: Tensor, t_high: Tensor, s_low: Tensor, s_high: Tensor) -> tuple[Tensor, Tensor]:
        """Whether some, and whether all pairs of two intervals are neighbours along an axis with ``size`` cells."""
        # The square moves with the target, so the first and the last target have the outermost squares.
        first, last, count = self._begin(t_low, size), self._begin(t_high, size), min(self.size, size)
        return (s_high >= first) & (s_low < last + count), (s_low >= last) & (s_high < first + count)

    @property
    def num_edges(self) -> int:
        return self._num_targets * min(self.size, self.height) * min(self.size, self.width)

    def _begin(self, place: Tensor, size: int) -> Tensor:
        """Where the square of a cell begins along an axis with so many cells."""
        return (place - self.size // 2).clamp(0, max(size - self.size, 0))

    def _reads(self, target: Tensor, source: Tensor, size: int) -> Tensor:
        step = source - self._begin(target, size)
        return (step >= 0) & (step < self.size)

    def _enumerate(self) -> Csr:
        n, height, width = self._num_targets, self.height, self.width
        dtype = index_dtype(n, self.num_edges)
        cells = []
        for size in (height, width):
            begin = self._begin(torch.arange(size, device=self.device, dtype=dtype), size)
            cells.append(begin[:, None] + torch.arange(min(self.size, size), device=self.device, dtype=dtype))
        down, right = cells
        source = down[:, None, :, None] * width + right[None, :, None, :]
        degree = down.shape[1] * right.shape[1]
        return Csr(torch.arange(n + 1, device=self.device, dtype=dtype) * degree, source.reshape(-1), None)
