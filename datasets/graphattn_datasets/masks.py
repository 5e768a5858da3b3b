"""Choosing one of several official splits."""

from __future__ import annotations

from torch_geometric.data import InMemoryDataset

from graphattn.errors import ArgumentError

__all__ = ["select_masks"]


def select_masks(dataset: InMemoryDataset, split_index: int | None) -> None:
    """Reduce masks ``[N, S]`` of a one-graph data set to one split, ``[N]`` bool; None keeps them all."""
    if split_index is None:
        return
    data = dataset._data
    for name in ("train_mask", "val_mask", "test_mask"):
        masks = data[name]
        if masks.dim() != 2:
            raise ArgumentError(f"split_index must be None: {dataset!r} has one split, got {split_index!r}")
        if not isinstance(split_index, int) or not 0 <= split_index < masks.size(1):
            raise ArgumentError(f"split_index must be in 0..{masks.size(1) - 1}, got {split_index!r}")
        data[name] = masks[:, split_index].contiguous()
