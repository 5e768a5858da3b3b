"""Plain PyTorch for any device: the smallest index spreads along edges, with jumps, until nothing changes."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._grid import OFFSETS, shifted

__all__ = ["compact", "connected_components"]


def connected_components(edges: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """See the API; ``edges [N, H, W]``."""
    count, height, width = edges.shape
    root = torch.arange(edges.numel(), device=edges.device)
    every, pairs = torch.ones_like(edges), []
    for c, (down, right) in enumerate(OFFSETS[neighbours]):
        joined = (edges >> c) & shifted(every, down, right)  # where there is such a neighbour
        pixel = joined.flatten().nonzero().squeeze(1)
        pairs.append(torch.stack([pixel, pixel + down * width + right]))
    pixel, neighbour = torch.cat(pairs, 1)
    while True:
        # Roots hook onto the smallest root next to them, then every chain is cut to half its length, twice.
        found = root.scatter_reduce(0, root[pixel], root[neighbour], "amin")
        found = found[found][found]
        if torch.equal(found, root):
            break
        root = found
    is_root = (root == torch.arange(edges.numel(), device=edges.device)) & (edges.flatten() != 0)
    rank = is_root.cumsum(0, dtype=torch.int32)
    return compact(edges, root, rank)


def compact(edges: Tensor, root: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Labels from the root of each pixel and the number of roots up to each pixel, all images together."""
    count, height, width = edges.shape
    if edges.numel() == 0:
        return edges.new_zeros(edges.shape, dtype=torch.int32), edges.new_zeros(count, dtype=torch.int32)
    ends = rank.view(count, -1)[:, -1]
    before = torch.cat([ends.new_zeros(1), ends[:-1]])
    labels = rank[root].view(edges.shape) - before[:, None, None]
    return labels.masked_fill_(edges == 0, 0), ends - before
