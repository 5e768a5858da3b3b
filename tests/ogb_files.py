"""Writes small data sets exactly as OGB's archives hold them; given to tests by the fixture ``ogb_files``."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphattn_datasets.ogb import ATOM_DIMS, BOND_DIMS, OgbMeta, ogb_meta


class OgbFiles:
    """An OGB root below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.root = folder

    def write(
        self, name: str, graphs: int = 30, nodes: int = 8, features: int = 8, missing: bool = False, seed: int = 0
    ) -> Path:
        """A data set of random graphs whose labels follow from the features (or the node numbers), so it can be learnt.

        Args:
            name: Any homogeneous set of OGB.
            graphs: Number of graphs of a graph property set.
            nodes: Mean number of nodes of its graphs, or all nodes of a node or link property set.
            features: Columns of floating node features.
            missing: Leave some labels out.
            seed: Seed of everything.
        """
        meta, rng = ogb_meta(name), np.random.default_rng(seed)
        folder = self.root / meta.folder
        many = meta.kind == "graph"
        sizes = rng.integers(2, 2 * nodes - 1, graphs) if many else np.array([nodes])
        edge, counts = self._edges(rng, sizes, 2 if many else 4, acyclic=meta.inverse)
        arrays = self._features(meta, rng, int(sizes.sum()), len(edge), features)
        self._raw(folder, meta, sizes, counts, edge, arrays)
        if meta.kind != "link":
            first = arrays.get("node_feat", np.arange(sizes.sum()).reshape(-1, 1))[:, 0].astype(np.float64)
            owner = np.repeat(np.arange(len(sizes)), sizes)
            value = np.bincount(owner, first) / sizes if many else first
            self._labels(folder, meta, rng, value, missing)
            self._idx_split(folder, meta, rng, len(value))
        else:
            self._edge_split(folder, meta, rng, edge, int(sizes[0]))
        (folder / f"RELEASE_v{meta.version}.txt").write_text("")
        return folder

    def _edges(self, rng: Any, sizes: np.ndarray, degree: int, acyclic: bool) -> tuple[np.ndarray, np.ndarray]:
        """Different edges without loops; if each stands for both directions, from the smaller number."""
        parts = []
        for size in sizes:
            source, target = rng.integers(0, size, (2, degree * size))
            pairs = np.stack((source, target), axis=1)[source < target if acyclic else source != target]
            pairs = np.unique(pairs, axis=0)
            parts.append(pairs[rng.permutation(len(pairs))])
        return np.concatenate(parts), np.array([len(part) for part in parts])

    def _features(self, meta: OgbMeta, rng: Any, nodes: int, edges: int, features: int) -> dict[str, np.ndarray]:
        molecules = meta.name.startswith("ogbg-mol")
        found: dict[str, np.ndarray] = {}
        if meta.node_feat:
            ids = [rng.integers(0, size, nodes) for size in ATOM_DIMS]
            real = rng.standard_normal((nodes, features)).round(6).astype(np.float32)
            found["node_feat"] = np.stack(ids, axis=1) if molecules or meta.name == "ogbg-code2" else real
        if meta.edge_feat:
            ids = [rng.integers(0, size, edges) for size in BOND_DIMS]
            real = rng.random((edges, 8)).round(3).astype(np.float32)
            found["edge_feat"] = np.stack(ids, axis=1) if molecules else real
        for name in (*meta.node_files, *meta.edge_files):
            rows = nodes if name in meta.node_files else edges
            found[name] = rng.integers(1990, 2020, (rows, 1))
        return found

    def _raw(self, folder: Path, meta: OgbMeta, sizes: Any, counts: Any, edge: Any, arrays: Any) -> None:
        raw = folder / "raw"
        raw.mkdir(parents=True)
        if meta.binary:
            lists = {"num_nodes_list": sizes, "num_edges_list": counts}
            np.savez_compressed(raw / "data.npz", edge_index=edge.T, **lists, **arrays)
            return
        write_table(raw / "edge.csv.gz", edge)
        write_table(raw / "num-node-list.csv.gz", sizes)
        write_table(raw / "num-edge-list.csv.gz", counts)
        for name, values in arrays.items():
            write_table(raw / f"{name.replace('_feat', '-feat')}.csv.gz", values)

    def _labels(self, folder: Path, meta: OgbMeta, rng: Any, value: np.ndarray, missing: bool) -> None:
        path = folder / "raw" / f"{meta.kind}-label.csv.gz"
        if meta.task == "subtoken":
            words = [" ".join(f"w{n}" for n in rng.integers(0, 9, rng.integers(1, 5))) for _ in value]
            with gzip.open(path, "wt") as file:
                file.writelines(f"{line}\n" for line in words)
            return
        y: Any = np.repeat(value[:, None], meta.num_tasks, axis=1)
        if meta.task == "regression":
            y = y.round(4)
        elif meta.task == "binary":
            y = (y > np.median(value)).astype(np.float64 if missing else np.int64)
        else:
            y = np.argsort(np.argsort(y, axis=0), axis=0) * min(3, meta.num_classes) // len(y)
        if missing:
            y = np.where(rng.random(y.shape) < 0.3, np.nan, y)
        if meta.binary:
            np.savez_compressed(path.with_name(f"{meta.kind}-label.npz"), **{f"{meta.kind}_label": y})
        else:
            write_table(path, y)

    def _idx_split(self, folder: Path, meta: OgbMeta, rng: Any, count: int) -> None:
        parts = np.split(rng.permutation(count), [int(0.6 * count), int(0.8 * count)])
        for part, numbers in zip(("train", "valid", "test"), parts, strict=True):
            write_table(folder / "split" / meta.split / f"{part}.csv.gz", numbers)

    def _edge_split(self, folder: Path, meta: OgbMeta, rng: Any, edge: np.ndarray, nodes: int) -> None:
        train, rest = edge, rng.integers(0, nodes, (40, 2))
        for part, pairs in (("train", train), ("valid", rest[:20]), ("test", rest[20:])):
            found: dict[str, np.ndarray] = {"edge": pairs}
            if meta.metric == "mrr":
                found = {"source_node": pairs[:, 0], "target_node": pairs[:, 1]}
                if part != "train":
                    found["target_node_neg"] = rng.integers(0, nodes, (len(pairs), 10))
            elif part != "train" or meta.name == "ogbl-vessel":
                found["edge_neg"] = rng.integers(0, nodes, (30, 2))
            for name in meta.edge_files if meta.metric != "mrr" else ():
                found[name.removeprefix("edge_")] = rng.integers(1, 9, len(pairs))
            write_split(folder / "split" / meta.split / f"{part}.pt", found)


def write_table(path: Path, values: Any) -> None:
    """As pandas writes it: no header, no index, a missing number empty (quoted where it stands alone)."""
    rows = np.asarray(values).reshape(len(values), -1)
    alone = '""' if rows.shape[1] == 1 else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        for row in rows.tolist():
            file.write(",".join(alone if number != number else repr(number) for number in row) + "\n")


def write_split(path: Path, found: dict[str, Any]) -> None:
    """As OGB has them: numpy arrays in torch's old format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path, _use_new_zipfile_serialization=False)
