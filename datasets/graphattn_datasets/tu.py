"""Small graph classification sets of the TU collection, in either of the two text forms that circulate."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_geometric.datasets as pyg
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.io import read_tu_data
from torch_geometric.utils import one_hot, to_undirected

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.cached import CachedDataset, NamedFolders
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.paths import cache_root, data_folder, data_setting
from graphattn_datasets.storage import Collated

__all__ = ["DGCNNText", "Fold", "TUDataset", "make"]

# Sets of this collection that are known to list each edge both ways.
_UNDIRECTED = ("ENZYMES", "IMDB-BINARY", "MUTAG", "NCI1", "PROTEINS")


class Fold(NamedTuple):
    """Graph numbers of one of ten folds, long tensors."""

    train: Tensor
    val: Tensor
    test: Tensor


class TUDataset(CachedDataset, pyg.TUDataset):
    """PyG's :class:`torch_geometric.datasets.TUDataset` with the cache of :class:`CachedDataset`.

    C. Morris et al., "TUDataset: A collection of benchmark datasets for learning with graphs", 2020.

    Args:
        root: Cache folder; default ``$GRAPHATTN_CACHE/tu`` or ``~/.cache/graphattn/tu``.
        name: Name in the TU collection, e.g. ``"ENZYMES"``.
        transform: Applied at every access.
        pre_transform: Applied once, before the graphs are stored.
        pre_filter: Keeps the graphs for which it is true.
        force_reload: Process again even if there is a stored copy.
        use_node_attr: Put continuous node attributes (if any) in front of the one-hot node labels in ``x``.
        use_edge_attr: The same for edges.
    """

    exactness = "official TU files"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        name: str = "ENZYMES",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        pre_filter: Callable[[Any], bool] | None = None,
        force_reload: bool = False,
        use_node_attr: bool = False,
        use_edge_attr: bool = False,
    ) -> None:
        self.name, self.cleaned = name, False
        # Past PyG's own constructor, which reads the processed file in its own way.
        InMemoryDataset.__init__(
            self, cache_root(root, "tu"), transform, pre_transform, pre_filter, force_reload=force_reload
        )
        self.load(self.processed_paths[0])
        self.sizes = self.extra["sizes"]
        data = self._data
        if data.x is not None and not use_node_attr:
            data.x = data.x[:, self.num_node_attributes :]
        if data.edge_attr is not None and not use_edge_attr:
            data.edge_attr = data.edge_attr[:, self.num_edge_attributes :]

    def shared_folders(self) -> list[str]:
        return [f"tu_graphs/{self.name}/raw"]

    def addresses(self) -> list[str]:
        return [f"{self.url}/{self.name}.zip"]

    def suspects(self) -> list[str]:
        return sorted(str(path) for path in Path(self.raw_dir).glob(f"{self.name}_*.txt"))

    def process(self) -> None:
        _check_lines(self.raw_dir, self.name)
        data, slices, sizes = read_tu_data(self.raw_dir, self.name)
        self.save(Collated(data, slices, {"sizes": sizes}), self.processed_paths[0])

    def fold(self, index: int) -> Fold:
        """Fold ``index`` (0..9) of benchmarking-gnns: 80 % training, 10 % validation, 10 % test graphs.

        Raises:
            DataError: If the index files are not there.
        """
        _check_fold(index)
        parts = []
        for split in Fold._fields:
            path = _fold_file(self.root, self.name, "benchmarking-gnns_splits", f"{self.name}_{split}.index")
            parts.append(_numbers(path, len(self), line=index, separator=","))
        _check_partition(parts, len(self), f"row {index + 1} of {self.name}_{{train,val,test}}.index")
        return Fold(*parts)


class DGCNNText(CachedDataset, NamedFolders):
    """TU sets in the text form of the GIN and DGCNN repositories, with the fields of PyG's TUDataset.

    K. Xu et al., "How Powerful are Graph Neural Networks?", ICLR 2019; M. Zhang et al., "An End-to-End Deep
    Learning Architecture for Graph Classification", AAAI 2018. ``x`` is the one-hot node label, float
    ``[N, labels]`` (absent if all nodes have the same label, as in IMDB-BINARY), ``y`` long ``[1]``. This form
    has no edge labels and no continuous attributes.

    Args:
        root: Cache folder; default ``$GRAPHATTN_CACHE/tu`` or ``~/.cache/graphattn/tu``.
        name: File name without ``.txt``: ``"MUTAG"``, ``"PROTEINS"``, ``"NCI1"``, ``"IMDBBINARY"``.
        transform: Applied at every access.
        pre_transform: Applied once, before the graphs are stored.
        pre_filter: Keeps the graphs for which it is true.
        force_reload: Process again even if there is a stored copy.
    """

    exactness = "graphs, node labels and classes as published; no edge labels, no continuous attributes"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        name: str = "MUTAG",
        transform: Callable[[Any], Any] | None = None,
        pre_transform: Callable[[Any], Any] | None = None,
        pre_filter: Callable[[Any], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        self.name = name
        super().__init__(cache_root(root, "tu"), transform, pre_transform, pre_filter, force_reload=force_reload)
        self.load(self.processed_paths[0])

    def shared_folders(self) -> list[str]:
        return [f"tu_graphs/{self.name}"]

    @property
    def raw_file_names(self) -> list[str]:
        return [f"{self.name}.txt"]

    @property
    def processed_file_names(self) -> list[str]:
        return ["data.pt"]

    def process(self) -> None:
        self.save(_read_dgcnn(self.raw_paths[0]), self.processed_paths[0])

    def fold(self, index: int) -> Fold:
        """Fold ``index`` (0..9) of the published ten; validation graphs are the test graphs of the next fold.

        The published protocol has no validation set (GIN reports the best epoch on the test fold); to follow
        it, join ``train`` and ``val``.

        Raises:
            DataError: If the index files are not there.
        """
        _check_fold(index)
        train, test = self._published_fold(index)
        _, val = self._published_fold((index + 1) % 10)
        return Fold(train[~torch.isin(train, val)], val, test)

    def _published_fold(self, index: int) -> tuple[Tensor, Tensor]:
        train, test = (
            _numbers(_fold_file(self.root, self.name, "10fold_idx", f"{part}_idx-{index + 1}.txt"), len(self))
            for part in ("train", "test")
        )
        _check_partition((train, test), len(self), f"fold {index + 1} of 10fold_idx of {self.name}")
        return train, test


def make(
    info: DatasetInfo,
    root: str | None,
    split: None,
    *,
    transform: Any,
    pre_transform: Any,
    pre_filter: Any = None,
    force_reload: bool = False,
    use_node_attr: bool = True,
    use_edge_attr: bool = False,
) -> CachedDataset:
    """The whole set, for :func:`~graphattn_datasets.load_dataset`: DGCNN text if there, else TU's files."""
    name = info.name.upper().replace("_", "-")
    plain = name.replace("-", "")
    base = data_folder()
    if base is not None and (base / "tu_graphs" / plain / f"{plain}.txt").is_file():
        return DGCNNText(root, plain, transform, pre_transform, pre_filter, force_reload)
    return TUDataset(root, name, transform, pre_transform, pre_filter, force_reload, use_node_attr, use_edge_attr)


def _read_dgcnn(path: str) -> list[Data]:
    lines = iter(Path(path).read_text().splitlines())
    graphs: list[tuple[int, Tensor]] = []
    tags: list[list[int]] = []
    labels: list[int] = []
    for _ in range(int(next(lines))):
        size, label = map(int, next(lines).split())
        rows = [[int(word) for word in next(lines).split()] for _ in range(size)]
        if any(len(row) != 2 + row[1] for row in rows):
            raise ValueError(f"a node of graph {len(graphs)} does not have as many neighbours as it says")
        degrees = [row[1] for row in rows]
        source = torch.tensor([neighbour for row in rows for neighbour in row[2:]], dtype=torch.long)
        if source.numel() and not 0 <= int(source.min()) <= int(source.max()) < size:
            raise ValueError(f"graph {len(graphs)} names a neighbour outside 0..{size - 1}")
        target = torch.repeat_interleave(torch.arange(size), torch.tensor(degrees))
        graphs.append((size, to_undirected(torch.stack((source, target)), num_nodes=size)))
        tags.append([row[0] for row in rows])
        labels.append(label)
    if any(line.strip() for line in lines):
        raise ValueError(f"there is text after the {len(graphs)} graphs that line 1 announces")
    vocabulary, ids = np.unique(np.concatenate(tags), return_inverse=True)
    x = one_hot(torch.from_numpy(ids), num_classes=len(vocabulary)) if len(vocabulary) > 1 else None
    y = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    out, start = [], 0
    for index, (size, edge_index) in enumerate(graphs):
        data = Data(edge_index=edge_index, y=y[index : index + 1])
        if x is None:
            data.num_nodes = size
        else:
            data.x = x[start : start + size]
        out.append(data)
        start += size
    return out


def _check_lines(folder: str, name: str) -> None:
    """PyG's reader takes files that end too soon, whose numbers of lines tell, and edges that leave their graph."""

    def corrupt(part: str, why: str) -> DataError:
        return DataError(f"{Path(folder) / f'{name}_{part}.txt'} is truncated or corrupt: {why}. Get it again.")

    lines: dict[str, list[bytes]] = {}
    for path in sorted(Path(folder).glob(f"{name}_*.txt")):
        content, part = path.read_bytes(), path.stem.removeprefix(f"{name}_")
        if not content.endswith(b"\n"):
            raise corrupt(part, "its last line has no end")
        lines[part] = content.splitlines()
    nodes, edges = lines["graph_indicator"], lines["A"]
    expected = {"node": len(nodes), "edge": len(edges), "graph": int(nodes[-1])}
    for part, rows in lines.items():
        wanted = expected.get(part.partition("_")[0], len(rows)) if part != "graph_indicator" else len(rows)
        if len(rows) != wanted:
            raise corrupt(part, f"{len(rows)} lines, expected {wanted}")
    member, ends = np.array(nodes).astype(np.int64), np.array([row.split(b",") for row in edges]).astype(np.int64)
    if (np.diff(member) < 0).any():
        raise corrupt("graph_indicator", "the nodes of a graph are not in a row")
    if (member[ends[:, 0] - 1] != member[ends[:, 1] - 1]).any():
        raise corrupt("A", "an edge joins two graphs")
    pairs = set(map(tuple, ends.tolist()))
    if name in _UNDIRECTED and any((target, source) not in pairs for source, target in pairs):
        raise corrupt("A", "an edge lacks its reverse")


def _check_partition(parts: Sequence[Tensor], count: int, files: str) -> None:
    if torch.cat(list(parts)).sort().values.tolist() != list(range(count)):
        raise DataError(f"{files}: its parts must be disjoint and name all {count} graphs. Get the files again.")


def _check_fold(index: int) -> None:
    if not isinstance(index, int) or not 0 <= index < 10:
        raise ArgumentError(f"fold must be an integer in 0..9, got {index!r}")


def _fold_file(root: str, name: str, folder: str, file: str) -> Path:
    places = [Path(root) / name / folder]
    base = data_folder()
    if base is not None:
        places.insert(0, base / "tu_graphs" / name / folder)
    for place in places:
        if (place / file).is_file():
            return place / file
    raise DataError(
        f"{name}: the fold file {file} is missing. Put it into {' or '.join(map(str, places))} ({data_setting()}), "
        "or split the data set yourself (scikit-learn's StratifiedKFold, say)."
    )


def _numbers(path: Path, count: int, line: int | None = None, separator: str | None = None) -> Tensor:
    try:
        text = path.read_text()
        numbers = [int(word) for word in (text if line is None else text.splitlines()[line]).split(separator)]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is truncated or corrupt ({type(error).__name__}: {error}). Get it again.") from error
    if not numbers or not 0 <= min(numbers) <= max(numbers) < count:
        raise DataError(f"{path} must name graphs in 0..{count - 1}. Get it again.")
    return torch.tensor(numbers)
