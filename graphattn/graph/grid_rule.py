"""The pattern of a grid: cells read the cells around them."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.pattern import Pattern
from graphattn.graph.rules import Device

__all__ = ["Grid", "columns_of"]


class Grid(Pattern):
    """Every cell of a grid reads the cells around it. Made by :func:`grid`."""

    _static_fields = (*Pattern._static_fields, "height", "width", "radius", "diagonal", "torus", "self_loops")

    def __init__(
        self,
        height: int,
        width: int,
        radius: int,
        diagonal: bool,
        torus: bool,
        self_loops: bool,
        device: Device,
    ) -> None:
        super().__init__(height * width, height * width, device=device)
        self.height = height
        self.width = width
        self.radius = radius
        self.diagonal = diagonal
        self.torus = torus
        self.self_loops = self_loops

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        down = (target // self.width - source // self.width).abs()
        right = (target % self.width - source % self.width).abs()
        if self.torus:
            down = torch.minimum(down, self.height - down)
            right = torch.minimum(right, self.width - right)
        near = torch.maximum(down, right) if self.diagonal else down + right
        inside = near <= self.radius
        return inside if self.self_loops else inside & (target != source)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        rows = [place // self.width for place in (t_first, t_last, s_first, s_last)]
        down, most_down = _gap(rows[0], rows[1], rows[2], rows[3], size=self.height if self.torus else None)
        columns = (*columns_of(t_first, t_last, self.width), *columns_of(s_first, s_last, self.width))
        right, most_right = _gap(*columns, size=self.width if self.torus else None)
        if self.diagonal:
            near, far = torch.maximum(down, right), torch.maximum(most_down, most_right)
        else:
            near, far = down + right, most_down + most_right
        apart = (t_last < s_first) | (s_last < t_first) | self.self_loops
        return near <= self.radius, (far <= self.radius) & apart

    @property
    def num_edges(self) -> int:
        n, loops = self._num_targets, self._num_targets if self.self_loops else 0
        if n == 0:
            return 0
        along = [self._pairs_along(size) for size in (self.height, self.width)]
        if self.diagonal:
            return along[0] * along[1] - n + loops
        return (along[0] - self.height) * self.width + self.height * (along[1] - self.width) + loops

    @property
    def known_symmetric(self) -> bool:
        return True

    def _pairs_along(self, size: int) -> int:
        """Ordered pairs of positions within the radius on a line (or ring) of this size, itself included."""
        if self.torus:
            return size * min(2 * self.radius + 1, size)
        reach = min(self.radius, size - 1)
        return size * (2 * reach + 1) - reach * (reach + 1)

    def _steps(self) -> Tensor:
        """Steps down and right that lead to a cell that is read, ``[K, 2]``, in the order of the cells."""
        down, right = (self._steps_along(size) for size in (self.height, self.width))
        steps = torch.cartesian_prod(down, right)
        far = steps.abs().amax(1) if self.diagonal else steps.abs().sum(1)
        return steps[(far <= self.radius) & (self.self_loops | (far > 0))]

    def _steps_along(self, size: int) -> Tensor:
        """On a ring each position is met once, on the shorter way."""
        low, high = -self.radius, self.radius
        if self.torus:
            low, high = max(low, -((size - 1) // 2)), min(high, size // 2)
        return torch.arange(low, high + 1, device=self.device)

    def _enumerate(self) -> Csr:
        n, height, width = self._num_targets, self.height, self.width
        dtype = index_dtype(n, self.num_edges)
        step = self._steps().to(dtype)
        target = torch.arange(n, device=self.device, dtype=dtype)[:, None]
        down = target // max(width, 1) + step[:, 0]
        right = target % max(width, 1) + step[:, 1]
        if self.torus:
            source, _ = (down % max(height, 1) * width + right % max(width, 1)).sort(dim=1)  # wrapping mixes them
            rowptr = torch.arange(n + 1, device=self.device, dtype=dtype) * source.shape[1]
            return Csr(rowptr, source.flatten(), None)
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        rowptr = torch.cat([target.new_zeros(1), inside.sum(1).cumsum(0)])
        return Csr(rowptr.to(dtype), (down * width + right)[inside], None)


def columns_of(first: Tensor, last: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The columns of a run of cells of a grid: all of them where it has cells in more than one row."""
    wraps = first // width != last // width
    return (first % width).masked_fill(wraps, 0), (last % width).masked_fill(wraps, width - 1)


def _gap(low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor, size: int | None) -> tuple[Tensor, Tensor]:
    """Least distance between two intervals (on a ring of this size, or on a line), and a bound of the largest."""
    ahead, behind = other_low - high, low - other_high
    least = torch.maximum(ahead, behind)
    if size is not None:
        least = torch.minimum(least, torch.minimum(ahead, behind) + size)
    return least.clamp(min=0), torch.maximum(other_high - low, high - other_low)
