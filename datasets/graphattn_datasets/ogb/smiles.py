"""PCQM4Mv2: molecules as SMILES, turned into graphs by OGB's own function."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data
from tqdm import tqdm

from graphattn.errors import DataError, MissingPackageError
from graphattn.optional import available
from graphattn_datasets.arrays import offsets
from graphattn_datasets.ogb.evaluate import import_ogb
from graphattn_datasets.ogb.roots import raw_file
from graphattn_datasets.storage import Collated

__all__ = ["read_smiles"]

_PARTS = ("node_feat", "edge_index", "edge_feat")


def read_smiles(folder: Path) -> Collated:
    """All molecules of ``raw/data.csv.gz``; ``y`` float32 ``[G]``, NaN where the label is hidden.

    Raises:
        MissingPackageError: If ogb or rdkit is not installed.
        DataError: If the file is missing or damaged.
    """
    path = raw_file(folder, "data.csv.gz")
    if not available("rdkit"):
        raise MissingPackageError(
            f'{path} holds SMILES, which OGB turns into graphs with the package "rdkit"; it is not installed. '
            "Install rdkit and ogb once, or put OGB's processed/geometric_data_processed.pt beside raw/ and remove "
            f"{path.name}."
        )
    to_graph = import_ogb("ogb.utils").smiles2graph
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _PARTS}
    labels = []
    for smiles, label in tqdm(_rows(path), desc="molecules from SMILES", unit="molecule", disable=None, delay=2.0):
        graph = to_graph(smiles)
        for name in _PARTS:  # the smallest type while there are millions of them
            parts[name].append(graph[name].astype(np.int16))
        labels.append(label)
    nodes = offsets(np.array([len(part) for part in parts["node_feat"]]))
    edges = torch.from_numpy(offsets(np.array([len(part) for part in parts["edge_feat"]])))
    data = Data(
        x=torch.from_numpy(np.concatenate(parts["node_feat"])).long(),
        edge_index=torch.from_numpy(np.concatenate(parts["edge_index"], axis=1)).long(),
        edge_attr=torch.from_numpy(np.concatenate(parts["edge_feat"])).long(),
        y=torch.tensor(labels, dtype=torch.float32),
    )
    slices = {
        "x": torch.from_numpy(nodes),
        "edge_index": edges,
        "edge_attr": edges,
        "y": torch.arange(len(labels) + 1),
    }
    return Collated(data, slices)


def _rows(path: Path) -> Iterator[tuple[str, float]]:
    try:
        with gzip.open(path, "rt", newline="") as file:
            for row in csv.DictReader(file):
                yield row["smiles"], float(row["homolumogap"] or "nan")
    except (OSError, EOFError, zlib.error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is missing, truncated or corrupt ({type(error).__name__}: {error}). Delete it and get it again."
        ) from error
