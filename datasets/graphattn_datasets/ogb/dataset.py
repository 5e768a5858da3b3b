"""OGB's graph, node and link property sets as PyG data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphattn.errors import ArgumentError
from graphattn_datasets.cached import CachedDataset
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.ogb.meta import OgbMeta, ogb_meta
from graphattn_datasets.ogb.pickles import read_processed
from graphattn_datasets.ogb.raw import read_graph, read_labels, read_raw
from graphattn_datasets.ogb.roots import find_folder, missing_files, raw_file
from graphattn_datasets.ogb.size import check_memory
from graphattn_datasets.ogb.smiles import read_smiles
from graphattn_datasets.ogb.splits import read_edge_split, read_idx_split
from graphattn_datasets.ogb.tables import table_facts
from graphattn_datasets.paths import cache_root
from graphattn_datasets.storage import Collated

__all__ = ["OgbDataset", "OgbGraphs", "OgbLinks", "OgbNodes", "make"]


class OgbDataset(CachedDataset):
    """An OGB data set, read from OGB's own raw files without the ogb package, prompts or unsafe pickles.

    W. Hu et al., "Open Graph Benchmark", NeurIPS 2020. An OGB root that is there (``root``, or ``ogb`` in
    ``$GRAPHATTN_DATA``) is only read; processed copies lie in ``$GRAPHATTN_CACHE/ogb``. What is nowhere is
    downloaded from OGB's address, without a question.

    Args:
        name: OGB's name, ``"ogbg-molhiv"``; case and ``_`` for ``-`` do not matter.
        root: OGB root that holds the data set's folder, or that folder.
        transform: Applied at every access.
        pre_transform: Applied once, before the graphs are stored.
        force_reload: Process again even if there is a stored copy.

    Raises:
        ArgumentError: If OGB has no such set, or another class is for it.
        DataError: If files are missing and cannot be downloaded, or are damaged, or need more memory than there is.
    """

    kind: str
    exactness = "OGB's own files and split"

    def __init__(
        self,
        name: str,
        root: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        self.meta: OgbMeta = ogb_meta(name)
        if self.meta.kind != self.kind or self.meta.hetero:
            reason = "has several types of nodes, which is not read here" if self.meta.hetero else "is another kind"
            raise ArgumentError(f"name must be a {self.kind} property set for {type(self).__name__}, {name!r} {reason}")
        self.name = self.meta.name
        self.folder: Path = find_folder(self.meta, root)
        if not self._only_processed and self.name != "pcqm4mv2":
            check_memory(self.folder, self.meta, reading=False)
        cache = str(Path(cache_root(None, "ogb")) / self.meta.folder)
        super().__init__(cache, transform, pre_transform, force_reload=force_reload)
        self.load(self.processed_paths[0])

    @property
    def raw_dir(self) -> str:
        return str(self.folder / "raw")

    @property
    def raw_file_names(self) -> list[str]:
        return [raw_file(self.folder, name).name for name in self.meta.raw_files]

    @property
    def processed_file_names(self) -> list[str]:
        return ["data.pt"]

    @property
    def raw_paths(self) -> list[str]:
        return [str(self.folder / "raw" / name) for name in self.raw_file_names]

    def cache_options(self) -> dict[str, Any]:
        # Roots with other contents get other copies.
        paths = self.raw_paths if not self._only_processed else [str(self._theirs)]
        return {"name": self.name, "files": [_mark(Path(path)) for path in paths]}

    @property
    def _theirs(self) -> Path:
        return self.folder / "processed" / "geometric_data_processed.pt"

    @property
    def _only_processed(self) -> bool:
        return bool(missing_files(self.folder, self.meta))

    def _download(self) -> None:
        """Nothing: the folder was found, or downloaded, before."""

    def process(self) -> None:
        if self._only_processed:
            graphs = read_processed(self._theirs)
        else:
            if self.name != "pcqm4mv2":
                check_memory(self.folder, self.meta, reading=True)
            graphs = self.read()
        self.save(graphs, self.processed_paths[0])

    def read(self) -> Collated:
        """The graphs from the raw files."""
        raise NotImplementedError

    @property
    def num_tasks(self) -> int:
        """Columns of the labels."""
        return self.meta.num_tasks


class OgbGraphs(OgbDataset):
    """A graph property set, ``ogbg-*``: fields as ogb's ``PygGraphPropPredDataset`` makes them.

    ``x``, ``edge_index``, ``edge_attr``; ``y`` ``[1, tasks]`` long, or float32 for regression and where labels are
    missing (NaN). Arguments as :class:`OgbDataset`.
    """

    kind = "graph"

    def read(self) -> Collated:
        if self.meta.name == "pcqm4mv2":
            return read_smiles(self.folder)
        return read_raw(self.folder, self.meta)

    def get_idx_split(self, split_type: str | None = None) -> dict[str, Tensor]:
        """Numbers of the graphs in ``train``, ``valid`` and ``test``.

        Raises:
            DataError: If there is no such split, or its files are damaged.
        """
        return read_idx_split(self.folder, self.meta, len(self), split_type)


class OgbNodes(OgbDataset):
    """A node property set, ``ogbn-*``: one graph.

    Fields as ogb's ``PygNodePropPredDataset`` makes them, and ``train_mask``, ``val_mask``, ``test_mask`` bool
    ``[N]``; ``y`` of a single class is long ``[N]`` and not ``[N, 1]``. Arguments as :class:`OgbDataset`.
    """

    kind = "node"

    def read(self) -> Collated:
        data = read_graph(self.folder, self.meta)
        y = read_labels(self.folder, self.meta)
        if self.meta.task == "multiclass" and y.shape[1] == 1:
            y = y.squeeze(1)
        data.y = y
        return Collated(data, None)

    def load(self, path: str, data_cls: type[Data] = Data) -> None:
        super().load(path, data_cls)
        data = self._data
        for part, numbers in self.get_idx_split().items():
            mask = torch.zeros(data.num_nodes, dtype=torch.bool)
            mask[numbers] = True
            data[f"{'val' if part == 'valid' else part}_mask"] = mask

    def get_idx_split(self, split_type: str | None = None) -> dict[str, Tensor]:
        """Numbers of the nodes in ``train``, ``valid`` and ``test``.

        Raises:
            DataError: If there is no such split, or its files are damaged.
        """
        return read_idx_split(self.folder, self.meta, self._data.num_nodes, split_type)


class OgbLinks(OgbDataset):
    """A link property set, ``ogbl-*``: one graph of the training edges.

    Fields as ogb's ``PygLinkPropPredDataset`` makes them. Arguments as :class:`OgbDataset`.
    """

    kind = "link"

    def read(self) -> Collated:
        return Collated(read_graph(self.folder, self.meta), None)

    def get_edge_split(self, split_type: str | None = None) -> dict[str, dict[str, Any]]:
        """The edges of ``train``, ``valid`` and ``test`` as OGB stores them, arrays as tensors.

        Raises:
            DataError: If there is no such split, or its files are damaged or not safe to read.
        """
        return read_edge_split(self.folder, self.meta, split_type)


def _mark(path: Path) -> str:
    """What tells a file's contents from others' without reading them: a gzip file ends with a checksum."""
    if path.suffix == ".gz":
        return table_facts(path)[1].hex()
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns}"


def make(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    force_reload: bool = False,
) -> OgbDataset:
    """The whole data set, for :func:`graphattn_datasets.load_dataset`."""
    kinds: dict[str, type[OgbDataset]] = {"graph": OgbGraphs, "node": OgbNodes, "link": OgbLinks}
    return kinds[ogb_meta(info.name).kind](info.name, root, transform, pre_transform, force_reload)
