"""Cora, CiteSeer and PubMed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import torch_geometric.datasets as pyg
from torch_geometric.io.planetoid import read_file

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.cached import CachedDataset
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.masks import select_masks
from graphattn_datasets.paths import cache_root

__all__ = ["Planetoid", "make"]

_NAMES = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
_SPLITS = ("public", "full", "geom-gcn", "random")


class Planetoid(CachedDataset, pyg.Planetoid):
    """PyG's :class:`torch_geometric.datasets.Planetoid` with the cache of :class:`CachedDataset`.

    Z. Yang et al., "Revisiting Semi-Supervised Learning with Graph Embeddings", ICML 2016.

    Args:
        root: Cache folder; default ``$GRAPHATTN_CACHE/planetoid`` or ``~/.cache/graphattn/planetoid``.
        name: ``"Cora"``, ``"CiteSeer"`` or ``"PubMed"``, in any case.
        split: ``"public"`` (default), ``"full"``, ``"geom-gcn"`` (ten masks) or ``"random"``, as in PyG.
        transform: Applied at every access.
        pre_transform: Applied once, before the graph is stored.
        force_reload: Process again even if there is a stored copy.
        split_index: Which of the ten masks of ``"geom-gcn"``, 0..9; None keeps them all, ``[N, 10]``.
        num_train_per_class, num_val, num_test: Sizes of the ``"random"`` split.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        name: str = "Cora",
        split: str = "public",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        force_reload: bool = False,
        *,
        split_index: int | None = None,
        num_train_per_class: int = 20,
        num_val: int = 500,
        num_test: int = 1000,
    ) -> None:
        if name.lower() not in _NAMES:
            raise ArgumentError(f"name must be one of {', '.join(_NAMES.values())}, got {name!r}")
        if split not in _SPLITS:
            raise ArgumentError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
        pyg.Planetoid.__init__(
            self,
            cache_root(root, "planetoid"),
            _NAMES[name.lower()],
            split,
            num_train_per_class,
            num_val,
            num_test,
            transform,
            pre_transform,
            force_reload,
        )
        select_masks(self, split_index)

    def shared_folders(self) -> list[str]:
        return [f"planetoid/{self.name}/{'geom-gcn/raw' if self.split == 'geom-gcn' else 'raw'}"]

    def addresses(self) -> list[str]:
        return [f"{self.url}/{name}" for name in self.raw_file_names]

    @property
    def raw_file_names(self) -> list[str]:
        masks = [f"{self.name.lower()}_split_0.6_0.2_{i}.npz" for i in range(10)]
        return [*super().raw_file_names, *(masks if self.split == "geom-gcn" else [])]

    def process(self) -> None:
        # The one file whose end can be missing without an error from PyG's reader.
        listed, rows = (len(read_file(self.raw_dir, self.name, part)) for part in ("test.index", "tx"))
        if listed != rows:
            path = os.path.join(self.raw_dir, f"ind.{self.name.lower()}.test.index")
            raise DataError(f"{path} is truncated or corrupt: it lists {listed} nodes, ind.*.tx has {rows}.")
        super().process()

    def suspects(self) -> list[str]:
        return [path for path in self.raw_paths if not self._readable(path)] or list(self.raw_paths)

    def _readable(self, path: str) -> bool:
        part = os.path.basename(path).removeprefix(f"ind.{self.name.lower()}.")
        if part.endswith(".npz"):
            return True
        try:
            read_file(self.raw_dir, self.name, part)
        except (OSError, EOFError, ValueError, IndexError, AttributeError, TypeError, ImportError):
            return False
        except pickle.UnpicklingError:
            return False
        return True


def make(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    force_reload: bool = False,
    split_index: int | None = 0,
    num_train_per_class: int = 20,
    num_val: int = 500,
    num_test: int = 1000,
) -> Planetoid:
    """The graph with its masks, for :func:`graphattn_datasets.load_dataset`."""
    return Planetoid(
        root,
        info.name,
        split or "public",
        transform,
        pre_transform,
        force_reload,
        split_index=split_index if split == "geom-gcn" else split_index or None,  # 0: the only one
        num_train_per_class=num_train_per_class,
        num_val=num_val,
        num_test=num_test,
    )
