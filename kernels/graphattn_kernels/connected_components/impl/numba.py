"""Numba, for CPU: one raster pass of union-find over runs, a second that writes the labels; images side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn_kernels._grid import OFFSETS
from graphattn_kernels._numba import compiled, empty, inlined, share

__all__ = ["connected_components"]


def connected_components(edges: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """See the API; ``edges [N, H, W]``."""
    count, height, width = edges.shape
    bits = edges.contiguous().numpy()
    labels, counts = empty(tuple(edges.shape), torch.int32), edges.new_zeros(count, dtype=torch.int32)
    if not edges.numel():
        return labels, counts
    # Channels of the neighbours that a raster scan has met before: up-left, up, up-right, left.
    masks = [0, 0, 0, 0]
    for c, offset in enumerate(OFFSETS[neighbours]):
        if offset < (0, 0):
            masks[((-1, -1), (-1, 0), (-1, 1), (0, -1)).index(offset)] = 1 << c
    up_left, up, up_right, left = map(np.uint8, masks)

    def work(first: int, last: int) -> None:
        parent = np.empty(height * width + 1, np.int32)  # pages that no label reaches cost nothing
        for n in range(first, last):
            _label(bits[n], labels.numpy()[n], parent, counts.numpy()[n : n + 1], up_left, up, up_right, left)

    threads = min(torch.get_num_threads(), count)
    share(work, list(range(count + 1)), threads) if threads > 1 else work(0, count)
    return labels, counts


@inlined
def _root(parent: Any, i: Any) -> Any:
    while parent[i] < i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@inlined
def _union(parent: Any, i: Any, j: Any) -> Any:
    i, j = _root(parent, i), _root(parent, j)
    if i < j:
        parent[j] = i
        return i
    parent[i] = j
    return j


@compiled()
def _label(bits: Any, labels: Any, parent: Any, count: Any, up_left: Any, up: Any, up_right: Any, left: Any) -> None:
    """Provisional labels in the order of their first pixel; the smaller root wins, so that this order stays."""
    height, width = bits.shape
    last = 0
    parent[0] = 0
    for y in range(height):
        for x in range(width):
            edges = bits[y, x]
            if edges == 0:
                labels[y, x] = 0
                continue
            if y == 0:  # a bit that points outside is nobody's neighbour
                edges &= left
            if x == 0:
                edges &= up | up_right
            if x == width - 1:
                edges &= ~up_right
            label = 0
            if edges & left:
                label = labels[y, x - 1]
            if edges & up:
                above = labels[y - 1, x]
                label = above if label == 0 or label == above else _union(parent, label, above)
            if edges & up_left:
                above = labels[y - 1, x - 1]
                label = above if label == 0 or label == above else _union(parent, label, above)
            if edges & up_right:
                above = labels[y - 1, x + 1]
                label = above if label == 0 or label == above else _union(parent, label, above)
            if label == 0:
                last += 1
                parent[last] = last
                label = last
            labels[y, x] = label
    # Parents are smaller than their children: in ascending order, a parent's final label is there already.
    found = 0
    for i in range(1, last + 1):
        if parent[i] == i:
            found += 1
            parent[i] = found
        else:
            parent[i] = parent[parent[i]]
    for y in range(height):
        for x in range(width):
            labels[y, x] = parent[labels[y, x]]
    count[0] = found
