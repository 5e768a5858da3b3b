"""How much memory a data set takes, from its small files and the first lines of its large ones."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np

from graphattn.errors import DataError
from graphattn_datasets.memory import available_memory
from graphattn_datasets.ogb.meta import OgbMeta
from graphattn_datasets.ogb.roots import raw_file
from graphattn_datasets.ogb.tables import read_numbers

__all__ = ["check_memory", "estimate_bytes"]


def check_memory(folder: Path, meta: OgbMeta, *, reading: bool) -> None:
    """Refuse a data set that does not fit into memory, before a process is killed for it.

    Args:
        folder: The data set's folder.
        meta: Facts about it.
        reading: The raw files are to be read, which takes the largest of them once more.

    Raises:
        DataError: If it needs more than there is; the text says what trains on a part of the graph.
    """
    free = available_memory()
    kept, largest = estimate_bytes(folder, meta)
    needed = kept + (largest if reading else 0)
    if free is None or needed <= free:
        return
    road = (
        "The training itself need not hold it on one device: graphattn.training.NeighborDataModule (sampled "
        "neighbourhoods) or ClusterDataModule (parts) move pieces of it."
        if meta.kind == "node"
        else "Use a machine with more memory."
    )
    raise DataError(
        f"{meta.name} does not fit: it takes about {needed / 1e9:.1f} GB of main memory"
        f"{' while its raw files are read' if reading else ''}, {free / 1e9:.1f} GB are free. {road} "
        f"Read it once where it fits; the processed copy takes {kept / 1e9:.1f} GB."
    )


def estimate_bytes(folder: Path, meta: OgbMeta) -> tuple[int, int]:
    """Bytes of all fields in memory, and of the largest file's contents.

    Raises:
        DataError: If a file is missing or damaged.
    """
    sizes = _npz_sizes(raw_file(folder, "data.npz")) if meta.binary else _csv_sizes(folder, meta)
    return sum(sizes), max(sizes)


def _csv_sizes(folder: Path, meta: OgbMeta) -> list[int]:
    nodes, edges = (int(read_numbers(raw_file(folder, f"num-{part}-list.csv.gz")).sum()) for part in ("node", "edge"))
    twice = 2 if meta.inverse else 1
    names = ["node-feat"] * meta.node_feat + list(meta.node_files)
    sizes = [nodes * _row_bytes(raw_file(folder, f"{name}.csv.gz")) for name in names]
    names = ["edge", *["edge-feat"] * meta.edge_feat, *meta.edge_files]
    return sizes + [twice * edges * _row_bytes(raw_file(folder, f"{name}.csv.gz")) for name in names]


def _row_bytes(path: Path) -> int:
    try:
        with gzip.open(path, "rb") as file:
            line = file.readline()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is missing, truncated or corrupt ({type(error).__name__}: {error})") from error
    return (line.count(b",") + 1) * (4 if b"." in line else 8)


def _npz_sizes(path: Path) -> list[int]:
    sizes = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                sizes.append(int(np.prod(shape)) * (8 if name.startswith("edge_index") else dtype.itemsize))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is missing, truncated or corrupt ({type(error).__name__}: {error})") from error
    return sizes
