"""Node classification where neighbours differ: the sets collected by Platonov et al."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch_geometric.datasets as pyg
from torch_geometric.data import InMemoryDataset

from graphattn.errors import ArgumentError
from graphattn_datasets.cached import CachedDataset
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.masks import select_masks
from graphattn_datasets.paths import cache_root

__all__ = ["HETEROPHILOUS_NAMES", "HeterophilousGraphDataset", "make"]

HETEROPHILOUS_NAMES = (
    "roman_empire",
    "amazon_ratings",
    "minesweeper",
    "tolokers",
    "questions",
    "actor",
    "chameleon",
    "chameleon_filtered",
    "squirrel",
    "squirrel_filtered",
    "texas",
    "cornell",
    "wisconsin",
)


class HeterophilousGraphDataset(CachedDataset, pyg.HeterophilousGraphDataset):
    """PyG's :class:`~torch_geometric.datasets.HeterophilousGraphDataset`, also for older sets of its source.

    O. Platonov et al., "A Critical Look at the Evaluation of GNNs under Heterophily", ICLR 2023. PyG's class
    reads five sets; actor, chameleon, squirrel (and both ``_filtered``, without duplicate nodes), texas,
    cornell and wisconsin lie in the same form in the authors' repository. Edges are made undirected; ten
    official splits.

    Args:
        root: Cache folder; default ``$GRAPHATTN_CACHE/heterophilous`` or
            ``~/.cache/graphattn/heterophilous``.
        name: One of ``HETEROPHILOUS_NAMES``; case and ``-`` for ``_`` do not matter.
        transform: Applied at every access.
        pre_transform: Applied once, before the graph is stored.
        force_reload: Process again even if there is a stored copy.
        split_index: Which of the ten splits, 0..9, as masks ``[N]``; None (default) keeps all,
            ``[N, 10]``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        name: str = "minesweeper",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        force_reload: bool = False,
        *,
        split_index: int | None = None,
    ) -> None:
        self.name = name.lower().replace("-", "_")
        if self.name not in HETEROPHILOUS_NAMES:
            raise ArgumentError(f"name must be one of {', '.join(HETEROPHILOUS_NAMES)}, got {name!r}")
        # Past PyG's own constructor, which knows five of the names only.
        InMemoryDataset.__init__(
            self, cache_root(root, "heterophilous"), transform, pre_transform, force_reload=force_reload
        )
        self.load(self.processed_paths[0])
        select_masks(self, split_index)

    def shared_folders(self) -> list[str]:
        return [f"heterophilous/{self.name}/raw", "heterophilous/npz"]

    def addresses(self) -> list[str]:
        return [f"{self.url}/{self.name}.npz"]


def make(
    info: DatasetInfo,
    root: str | None,
    split: None,
    *,
    transform: Any,
    pre_transform: Any,
    force_reload: bool = False,
    split_index: int | None = 0,
) -> HeterophilousGraphDataset:
    """The graph with its masks, for :func:`graphattn_datasets.load_dataset`."""
    return HeterophilousGraphDataset(root, info.name, transform, pre_transform, force_reload, split_index=split_index)
