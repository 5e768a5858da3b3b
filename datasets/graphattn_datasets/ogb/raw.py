"""Graphs from the files in ``raw/``, as ``ogb.io.read_graph_pyg`` makes them, without a loop over graphs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch_geometric.data import Data

from graphattn.errors import DataError
from graphattn_datasets.arrays import both_directions, check_lengths, offsets
from graphattn_datasets.ogb.meta import OgbMeta
from graphattn_datasets.ogb.roots import raw_file
from graphattn_datasets.ogb.tables import read_numbers, read_rows
from graphattn_datasets.storage import Collated

__all__ = ["read_graph", "read_labels", "read_raw"]

_FIELDS = {"node_feat": "x", "edge_feat": "edge_attr"}


class _Arrays(NamedTuple):
    num_nodes: np.ndarray  # [G]
    num_edges: np.ndarray  # [G], as in the files
    edge_index: np.ndarray  # [2, E]
    fields: dict[str, np.ndarray]  # by PyG's name; rows of nodes or edges
    of_edges: frozenset[str]


def read_raw(folder: Path, meta: OgbMeta) -> Collated:
    """All graphs of a graph property set in PyG's in-memory form.

    Fields ``x``, ``edge_index``, ``edge_attr``, the additional files by their names, ``y`` ``[G, tasks]``: long, or
    float32 for regression and where labels are missing (NaN). A set without node features keeps the numbers of nodes.

    Raises:
        DataError: If a file is missing, damaged, or does not fit the others.
    """
    arrays = _read(folder, meta)
    nodes, edges = (torch.from_numpy(offsets(counts)) for counts in (arrays.num_nodes, arrays.num_edges))
    edges = edges * (2 if meta.inverse else 1)
    data = _data(arrays)
    slices = {"edge_index": edges}
    for name in arrays.fields:
        slices[name] = edges if name in arrays.of_edges else nodes
    count = len(arrays.num_nodes)
    y: Any = _words(folder) if meta.task == "subtoken" else read_labels(folder, meta)
    check_lengths(str(raw_file(folder, "graph-label.csv.gz")), graph_labels=(len(y), count))
    data.y, slices["y"] = y, torch.arange(count + 1)
    if not meta.node_feat:
        # As PyG's collate keeps them, beside the fields.
        data._store._num_nodes = arrays.num_nodes.tolist()
        data.num_nodes = int(arrays.num_nodes.sum())
    return Collated(data, slices)


def read_graph(folder: Path, meta: OgbMeta) -> Data:
    """The one graph of a node or link property set, labels not included.

    Raises:
        DataError: If a file is missing, damaged, or does not fit the others.
    """
    arrays = _read(folder, meta)
    if len(arrays.num_nodes) != 1:
        raise DataError(f"{folder}: {meta.name} must be one graph, got {len(arrays.num_nodes)}")
    data = _data(arrays)
    data.num_nodes = int(arrays.num_nodes[0])
    return data


def read_labels(folder: Path, meta: OgbMeta) -> torch.Tensor:
    """Labels ``[rows, num_tasks]``: long, or float32 for regression and where some are missing (NaN)."""
    if meta.binary:
        path = raw_file(folder, f"{meta.kind}-label.npz")
        labels = _load_npz(path)[f"{meta.kind}_label"]
    else:
        path = raw_file(folder, f"{meta.kind}-label.csv.gz")
        labels = read_numbers(path)
    if labels.ndim != 2 or labels.shape[1] != meta.num_tasks:
        raise DataError(f"{path} must have {meta.num_tasks} labels a row, got shape {labels.shape}. Get it again.")
    missing = labels.dtype.kind == "f" and bool(np.isnan(labels).any())
    kind = torch.float32 if missing or meta.task == "regression" else torch.long
    return torch.from_numpy(labels).to(kind)


def _words(folder: Path) -> list[list[str]]:
    return [line.split(" ") for line in read_rows(raw_file(folder, "graph-label.csv.gz"))]


def _data(arrays: _Arrays) -> Data:
    fields = {name: torch.from_numpy(value) for name, value in arrays.fields.items()}
    return Data(edge_index=torch.from_numpy(arrays.edge_index).contiguous(), **fields)


def _read(folder: Path, meta: OgbMeta) -> _Arrays:
    found = _from_npz(folder, meta) if meta.binary else _from_csv(folder, meta)
    total_nodes, total_edges = int(found.num_nodes.sum()), int(found.num_edges.sum())
    check_lengths(str(folder), num_edge_list=(len(found.num_edges), len(found.num_nodes)))
    check_lengths(str(raw_file(folder, "edge.csv.gz")), edges=(found.edge_index.shape[1], total_edges))
    for name, value in found.fields.items():
        wanted = total_edges if name in found.of_edges else total_nodes
        check_lengths(str(folder), **{name: (len(value), wanted)})
    _check_ids(folder, found)
    if not meta.inverse:
        return found
    fields = {n: np.repeat(v, 2, axis=0) if n in found.of_edges else v for n, v in found.fields.items()}
    return found._replace(edge_index=both_directions(found.edge_index.T), fields=fields)


def _check_ids(folder: Path, found: _Arrays) -> None:
    if not found.edge_index.size:
        return
    bound = np.repeat(found.num_nodes, found.num_edges) if len(found.num_nodes) > 1 else found.num_nodes
    if found.edge_index.min() < 0 or (found.edge_index >= bound).any():
        raise DataError(f"{folder}: an edge names a node that its graph does not have. Get the files again.")


def _from_csv(folder: Path, meta: OgbMeta) -> _Arrays:
    def table(name: str) -> np.ndarray:
        return read_numbers(raw_file(folder, f"{name}.csv.gz"), real=np.float32)

    num_nodes, num_edges = (table(f"num-{part}-list").reshape(-1).astype(np.int64) for part in ("node", "edge"))
    edges = table("edge")
    if edges.size and (edges.shape[1] != 2 or edges.dtype != np.int64):
        path = raw_file(folder, "edge.csv.gz")
        raise DataError(f"{path} must hold two node ids a row, got {edges.shape[1]} columns of {edges.dtype}")
    fields, of_edges = {}, {"edge_attr", *meta.edge_files}
    for given, name, field in ((meta.node_feat, "node-feat", "x"), (meta.edge_feat, "edge-feat", "edge_attr")):
        if given:
            fields[field] = table(name)
    for name in (*meta.node_files, *meta.edge_files):
        fields[name] = table(name)
    return _Arrays(num_nodes, num_edges, edges.reshape(-1, 2).T, fields, frozenset(of_edges))


def _from_npz(folder: Path, meta: OgbMeta) -> _Arrays:
    path = raw_file(folder, "data.npz")
    stored = _load_npz(path)
    absent = [name for name in ("edge_index", "num_nodes_list", "num_edges_list") if name not in stored]
    if absent:
        raise DataError(f"{path}: no array named {', '.join(absent)}. Get the file again.")
    fields = {_FIELDS.get(name, name): value for name, value in stored.items() if name.startswith(("node_", "edge_"))}
    edge_index = fields.pop("edge_index").astype(np.int64, copy=False)
    of_edges = frozenset(name for name in fields if name.startswith("edge_"))
    nodes, edges = (stored[name].astype(np.int64) for name in ("num_nodes_list", "num_edges_list"))
    return _Arrays(nodes, edges, edge_index, fields, of_edges)


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is truncated or corrupt ({type(error).__name__}: {error}). Delete it and get it again."
        ) from error
