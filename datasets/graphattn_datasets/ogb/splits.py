"""The official splits of OGB, read from ``split/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn.errors import DataError
from graphattn_datasets.ogb.meta import OgbMeta
from graphattn_datasets.ogb.pickles import read_split_file
from graphattn_datasets.ogb.roots import raw_file, split_folder
from graphattn_datasets.ogb.tables import read_numbers
from graphattn_datasets.paths import say

__all__ = ["PARTS", "read_edge_split", "read_idx_split"]

PARTS = ("train", "valid", "test")


def read_idx_split(folder: Path, meta: OgbMeta, count: int, split_type: str | None = None) -> dict[str, Tensor]:
    """Numbers of the graphs or nodes of each part, ``train``, ``valid`` and ``test``, long.

    Raises:
        DataError: If a file is missing or damaged, names something outside ``0..count - 1``, or parts overlap.
    """
    if meta.name == "pcqm4mv2":
        whole = folder / "split_dict.pt"
        found = read_split_file(whole)
    else:
        path = split_folder(folder, meta, split_type)
        whole = path / "split_dict.pt"
        found = read_split_file(whole) if whole.is_file() else {part: _numbers(path, part) for part in PARTS}
    parts = {part: torch.as_tensor(value).long().reshape(-1) for part, value in found.items()}
    absent = [part for part in PARTS[:2] if part not in parts]
    if absent:
        raise DataError(f"{whole} has no part {', '.join(absent)}; it has {', '.join(parts)}")
    seen = np.zeros(count, dtype=np.int8)
    for part, numbers in parts.items():
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
            raise DataError(f"{meta.name}: part {part!r} of the split must name 0..{count - 1}. Get its files again.")
        np.add.at(seen, numbers.numpy(), 1)
    if (seen > 1).any():
        raise DataError(f"{meta.name}: parts of the split overlap in {int((seen > 1).sum())} places")
    return parts


def read_edge_split(folder: Path, meta: OgbMeta, split_type: str | None = None) -> dict[str, dict[str, Any]]:
    """Edges of each part as OGB stores them, arrays as tensors.

    ``edge`` ``[n, 2]`` and, in ``valid`` and ``test``, ``edge_neg``; or ``source_node``, ``target_node`` ``[n]`` and
    ``target_node_neg`` ``[n, K]``; perhaps ``weight``, ``year``.

    Raises:
        DataError: If a file is missing, damaged, or not safe to read.
    """
    path = split_folder(folder, meta, split_type)
    if (path / "split_dict.pt").is_file():
        return read_split_file(path / "split_dict.pt")
    return {part: _edges(path / f"{part}.pt", folder, meta) for part in PARTS}


def _edges(path: Path, folder: Path, meta: OgbMeta) -> dict[str, Any]:
    edges = raw_file(folder, "edge.csv.gz")
    if path.is_file() or path.stem != "train" or not meta.inverse or not edges.is_file():
        return read_split_file(path)
    # The graph of such a set is its training edges, each once in the file.
    say(f"{path} is missing; the training edges are taken from {edges}, perhaps in another order than OGB's")
    found = {"edge": torch.from_numpy(read_numbers(edges))}
    for name in meta.edge_files:
        found[name.removeprefix("edge_")] = torch.from_numpy(read_numbers(raw_file(folder, f"{name}.csv.gz"))[:, 0])
    return found


def _numbers(path: Path, part: str) -> np.ndarray:
    found = read_numbers(path / f"{part}.csv.gz")
    if found.dtype != np.int64:
        raise DataError(f"{path / f'{part}.csv.gz'} must hold whole numbers. Get it again.")
    return found[:, 0] if found.size else found.reshape(-1)
