"""Peptides-func of the Long Range Graph Benchmark."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_geometric.datasets as pyg
from torch_geometric.data import Data

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.arrays import both_directions, check_lengths, gather_ranges, offsets, read_npz
from graphattn_datasets.cached import CachedDataset, NamedFolders
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.paths import cache_root, data_folder
from graphattn_datasets.storage import Collated

__all__ = ["PeptidesArrays", "PeptidesLRGB", "make"]

_SPLITS = ("train", "val", "test")
_FILE = "peptides_func_graphs.npz"


class PeptidesArrays(CachedDataset, NamedFolders):
    """Peptides-func from the arrays under ``$GRAPHATTN_DATA/peptides-func``, with PyG's fields.

    V. P. Dwivedi et al., "Long Range Graph Benchmark", NeurIPS 2022. ``x`` long ``[N, 9]`` (OGB atom
    features), ``edge_attr`` long ``[E, 3]`` (OGB bond features), ``y`` float ``[1, 10]`` (ten binary labels).
    Official molecules, labels and split; the features were computed from them by OGB's function (RDKit
    2021.03).

    Args:
        root: Cache folder; default ``$GRAPHATTN_CACHE/peptides`` or ``~/.cache/graphattn/peptides``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: Applied once, before the graphs are stored.
        pre_filter: Keeps the graphs for which it is true.
        force_reload: Process again even if there is a stored copy.
    """

    exactness = "official molecules, labels and split; features recomputed by OGB's function"
    name = "peptides-func"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        pre_filter: Callable[[Any], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        if split not in _SPLITS:
            raise ArgumentError(f"split must be one of {_SPLITS}, got {split!r}")
        self.split = split
        super().__init__(cache_root(root, "peptides"), transform, pre_transform, pre_filter, force_reload=force_reload)
        self.load(self.processed_paths[0])

    def shared_folders(self) -> list[str]:
        return ["peptides-func"]

    @property
    def raw_file_names(self) -> list[str]:
        return [_FILE]

    @property
    def processed_file_names(self) -> list[str]:
        return [f"{self.split}.pt"]

    def process(self) -> None:
        self.save(_read(self.raw_paths[0], self.split), self.processed_paths[0])


class PeptidesLRGB(CachedDataset, pyg.LRGBDataset):
    """Peptides-func by PyG's :class:`torch_geometric.datasets.LRGBDataset`: downloaded official files.

    Arguments and fields as :class:`PeptidesArrays`.
    """

    exactness = "official files"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        pre_filter: Callable[[Any], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        if split not in _SPLITS:
            raise ArgumentError(f"split must be one of {_SPLITS}, got {split!r}")
        self.split = split
        pyg.LRGBDataset.__init__(
            self,
            cache_root(root, "peptides"),
            "peptides-func",
            split,
            transform,
            pre_transform,
            pre_filter,
            force_reload,
        )

    def shared_folders(self) -> list[str]:
        return ["peptides-func/raw"]

    def addresses(self) -> list[str]:
        return [self.urls["peptides-func"]]

    def convert(self, data: Data) -> Data:
        data.x, data.edge_attr, data.y = data.x.long(), data.edge_attr.long(), data.y.float().view(1, -1)
        return data


def make(
    info: DatasetInfo,
    root: str | None,
    split: str,
    *,
    transform: Any,
    pre_transform: Any,
    pre_filter: Any = None,
    force_reload: bool = False,
) -> CachedDataset:
    """One split, for :func:`~graphattn_datasets.load_dataset`: arrays if they are there, else PyG's files."""
    base = data_folder()
    cls = PeptidesArrays if base is not None and (base / "peptides-func" / _FILE).is_file() else PeptidesLRGB
    return cls(root, split, transform, pre_transform, pre_filter, force_reload)


def _read(path: str, split: str) -> Collated:
    raw = read_npz(path, ["node_feat", "edge", "edge_feat", "num_nodes", "num_bonds", "y", "split"])
    nodes, bonds = offsets(raw["num_nodes"]), offsets(raw["num_bonds"])
    check_lengths(
        path,
        node_feat=(len(raw["node_feat"]), int(nodes[-1])),
        edge=(len(raw["edge"]), int(bonds[-1])),
        edge_feat=(len(raw["edge_feat"]), int(bonds[-1])),
        y=(len(raw["y"]), len(raw["split"])),
    )
    order = np.flatnonzero(raw["split"] == _SPLITS.index(split))
    in_split = gather_ranges(bonds, order)
    num_nodes, num_bonds = raw["num_nodes"][order].astype(np.int64), raw["num_bonds"][order].astype(np.int64)
    edge = raw["edge"][in_split]
    if edge.size and (edge.max(axis=1) >= np.repeat(num_nodes, num_bonds)).any():
        raise DataError(f"{path}: a bond names an atom that its molecule does not have. Get the file again.")
    data = Data(
        x=torch.from_numpy(raw["node_feat"][gather_ranges(nodes, order)]).long(),
        edge_index=torch.from_numpy(both_directions(edge)).contiguous(),
        edge_attr=torch.from_numpy(np.repeat(raw["edge_feat"][in_split], 2, axis=0)).long(),
        y=torch.from_numpy(raw["y"][order]).float(),
    )
    edges = torch.from_numpy(offsets(2 * num_bonds))
    slices = {
        "x": torch.from_numpy(offsets(num_nodes)),
        "edge_index": edges,
        "edge_attr": edges,
        "y": torch.arange(len(order) + 1),
    }
    return Collated(data, slices)
