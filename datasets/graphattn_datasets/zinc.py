"""ZINC: constrained solubility of molecules."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_geometric.datasets as pyg
from torch_geometric.data import Data

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.arrays import check_lengths, gather_ranges, offsets, read_npz
from graphattn_datasets.cached import CachedDataset, NamedFolders
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.paths import cache_root, data_folder
from graphattn_datasets.storage import Collated

__all__ = ["ZINCArrays", "ZINCPickles", "make"]

_SPLITS = ("train", "val", "test")
_FULL = "zinc_full_graphs.npz"


class ZINCArrays(CachedDataset, NamedFolders):
    """ZINC from the arrays under ``$GRAPHATTN_DATA/zinc``, with the fields of PyG's ZINC.

    ``x`` long ``[N]`` (28 atom types), ``edge_attr`` long ``[E]`` (1 single, 2 double, 3 triple bond), ``y``
    float ``[1]``, ``edge_index`` sorted by its rows as in PyG.

    **What is exact.** Validation and test set of the 12k subset are the original graphs. Its 10,000 training
    graphs are *another random draw* from the same 220,011 (the official draw cannot be reconstructed), so
    figures compare with published ones up to the noise of the training sample: say so when reporting. The
    full set is the official one as sets of molecules, rebuilt from SMILES (99.9 % of 2,000 known graphs
    isomorphic, ``y`` equal to 1e-5).

    Args:
        root: Cache folder; default ``$GRAPHATTN_CACHE/zinc`` or ``~/.cache/graphattn/zinc``.
        subset: True for the 12k subset, False for the full set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: Applied once, before the graphs are stored.
        pre_filter: Keeps the graphs for which it is true.
        force_reload: Process again even if there is a stored copy.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        subset: bool = False,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        pre_filter: Callable[[Any], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        if split not in _SPLITS:
            raise ArgumentError(f"split must be one of {_SPLITS}, got {split!r}")
        self.subset, self.split = subset, split
        self.name = "ZINC-12k" if subset else "ZINC-full"
        if not subset:
            self.exactness = "official sets of molecules, rebuilt from SMILES (99.9 % of known graphs identical)"
        elif split == "train":
            self.exactness = "NOT the official 10,000 training graphs: another random draw from the same pool"
        else:
            self.exactness = "original graphs"
        super().__init__(cache_root(root, "zinc"), transform, pre_transform, pre_filter, force_reload=force_reload)
        self.load(self.processed_paths[0])

    def shared_folders(self) -> list[str]:
        return ["zinc"]

    @property
    def raw_file_names(self) -> list[str]:
        return [f"subset_official/{self.split}.npz" if self.subset and self.split != "train" else _FULL]

    @property
    def processed_file_names(self) -> list[str]:
        return [f"{self.split}.pt"]

    def process(self) -> None:
        path = self.raw_paths[0]
        graphs = _read_full(path, self.split, self.subset) if path.endswith(_FULL) else _read_official(path)
        self.save(graphs, self.processed_paths[0])


class ZINCPickles(CachedDataset, pyg.ZINC):
    """ZINC by PyG's :class:`torch_geometric.datasets.ZINC`: downloaded official files.

    ``x`` is ``[N]`` and not PyG's ``[N, 1]``. Arguments as :class:`ZINCArrays`.
    """

    exactness = "official files"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        subset: bool = False,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        pre_filter: Callable[[Any], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        if split not in _SPLITS:
            raise ArgumentError(f"split must be one of {_SPLITS}, got {split!r}")
        self.name, self.split = "ZINC-12k" if subset else "ZINC-full", split
        pyg.ZINC.__init__(
            self, cache_root(root, "zinc"), subset, split, transform, pre_transform, pre_filter, force_reload
        )

    def shared_folders(self) -> list[str]:
        return ["zinc/raw"]

    def addresses(self) -> list[str]:
        return [self.url, *(self.split_url.format(split) for split in _SPLITS)]

    def convert(self, data: Data) -> Data:
        data.x = data.x.view(-1)
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
    cls = ZINCArrays if base is not None and (base / "zinc" / _FULL).is_file() else ZINCPickles
    return cls(root, info.name == "zinc_12k", split, transform, pre_transform, pre_filter, force_reload)


def _read_official(path: str) -> Collated:
    raw = read_npz(path, ["x", "edge_index", "edge_attr", "y", "slices_x", "slices_edge"])
    check_lengths(
        path,
        x=(len(raw["x"]), int(raw["slices_x"][-1])),
        edge_index=(raw["edge_index"].shape[1], int(raw["slices_edge"][-1])),
        edge_attr=(len(raw["edge_attr"]), int(raw["slices_edge"][-1])),
    )
    return _collated(raw["x"], raw["edge_index"], raw["edge_attr"], raw["y"], raw["slices_x"], raw["slices_edge"])


def _read_full(path: str, split: str, subset: bool) -> Collated:
    raw = read_npz(path, ["atom", "bond", "num_nodes", "num_bonds", "y", "split", "valid_order", "train10k_random"])
    nodes, bonds = offsets(raw["num_nodes"]), offsets(raw["num_bonds"])
    check_lengths(path, atom=(len(raw["atom"]), int(nodes[-1])), bond=(len(raw["bond"]), int(bonds[-1])))
    if subset:
        order = raw["train10k_random"].astype(np.int64)
    elif split == "val":
        order = raw["valid_order"].astype(np.int64)
    else:
        order = np.flatnonzero(raw["split"] == _SPLITS.index(split))
    x = raw["atom"][gather_ranges(nodes, order)]
    bond = raw["bond"][gather_ranges(bonds, order)]
    num_nodes, num_bonds = raw["num_nodes"][order].astype(np.int64), raw["num_bonds"][order].astype(np.int64)
    if bond.size and (bond[:, :2].max(axis=1) >= np.repeat(num_nodes, num_bonds)).any():
        raise DataError(f"{path}: a bond names an atom that its molecule does not have. Get the file again.")
    edge_index, edge_attr = _sorted_edges(bond, num_bonds)
    return _collated(x, edge_index, edge_attr, raw["y"][order], offsets(num_nodes), offsets(2 * num_bonds))


def _sorted_edges(bond: np.ndarray, num_bonds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both directions of each bond, by graph and then in the order of PyG's ``adj.nonzero()``."""
    source = np.concatenate((bond[:, 0], bond[:, 1])).astype(np.int64)
    target = np.concatenate((bond[:, 1], bond[:, 0])).astype(np.int64)
    graph = np.tile(np.repeat(np.arange(len(num_bonds)), num_bonds), 2)
    order = np.argsort((graph * 256 + source) * 256 + target)  # atoms are numbered in one byte
    return np.stack((source[order], target[order])), np.tile(bond[:, 2], 2)[order]


def _collated(
    x: np.ndarray,
    edge_index: np.ndarray,
    edge_attr: np.ndarray,
    y: np.ndarray,
    nodes: np.ndarray,
    edges: np.ndarray,
) -> Collated:
    data = Data(
        x=torch.from_numpy(x).long(),
        edge_index=torch.from_numpy(edge_index).long(),
        edge_attr=torch.from_numpy(edge_attr).long(),
        y=torch.from_numpy(y).float(),
    )
    node_slices, edge_slices = torch.from_numpy(nodes).long(), torch.from_numpy(edges).long()
    slices = {
        "x": node_slices,
        "edge_index": edge_slices,
        "edge_attr": edge_slices,
        "y": torch.arange(len(y) + 1),
    }
    return Collated(data, slices)
