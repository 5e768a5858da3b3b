"""Tiny raw files in the real on-disk formats, an own cache for each test, and no network."""

from __future__ import annotations

import pickle
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    def no_prompt(*args: Any) -> None:
        raise AssertionError("a data set asked for input")

    monkeypatch.setenv("GRAPHATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAPHATTN_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr("builtins.input", no_prompt)


class RawFiles:
    """Writes raw files below a data folder, as the sources publish them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, *parts: str) -> Path:
        target = self.folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def snapshot(self) -> dict[str, tuple[int, int]]:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    def planetoid(self, name: str = "Cora") -> None:
        """520 nodes (4 train, 500 val, 10 test, the rest unlabelled) on a ring, one-hot ``node % 3`` as label."""
        identity = np.eye(3, dtype=np.int32)
        features = scipy.sparse.csr_matrix(np.arange(520 * 2, dtype=np.float32).reshape(520, 2))
        labels = identity[np.arange(520) % 3]
        test = [519, 510, 511, 512, 513, 514, 515, 516, 517, 518]  # rows of tx are in this order
        graph = defaultdict(list, {i: [(i - 1) % 520, (i + 1) % 520] for i in range(520)})
        parts = {
            "x": features[:4],
            "y": labels[:4],
            "allx": features[:510],
            "ally": labels[:510],
            "tx": features[test],
            "ty": labels[test],
            "graph": graph,
        }
        for part, value in parts.items():
            target = self.path("planetoid", name, "raw", f"ind.{name.lower()}.{part}")
            target.write_bytes(pickle.dumps(value, protocol=2))
        index = self.path("planetoid", name, "raw", f"ind.{name.lower()}.test.index")
        index.write_text("".join(f"{i}\n" for i in test))

    def heterophilous(self, *where: str) -> None:
        """Four nodes on a path, each edge once; ten splits: split s trains on node ``s % 4``."""
        masks = np.eye(4, dtype=bool)[np.arange(10) % 4]
        np.savez_compressed(
            self.path("heterophilous", *where),
            node_features=np.arange(8, dtype=np.float32).reshape(4, 2),
            node_labels=np.array([0, 1, 1, 0]),
            edges=np.array([[0, 1], [1, 2], [2, 3]]),
            train_masks=masks,
            val_masks=np.roll(masks, 1, axis=1),
            test_masks=~masks & ~np.roll(masks, 1, axis=1),
        )

    def zinc(self) -> None:
        """Five molecules: a path of 3, a pair, a triangle, a path of 4, a pair; sets 0, 0, 1, 0, 2."""
        bonds = [
            [0, 1, 1],
            [1, 2, 2],
            [0, 1, 3],
            [0, 1, 1],
            [0, 2, 1],
            [1, 2, 1],
            [2, 3, 1],
            [1, 2, 1],
            [0, 1, 2],
            [0, 1, 1],
        ]
        np.savez_compressed(
            self.path("zinc", "zinc_full_graphs.npz"),
            atom=np.array([0, 1, 2, 3, 4, 5, 5, 5, 0, 1, 0, 1, 27, 26], dtype=np.uint8),
            bond=np.array(bonds, dtype=np.uint8),
            num_nodes=np.array([3, 2, 3, 4, 2], dtype=np.uint8),
            num_bonds=np.array([2, 1, 3, 3, 1], dtype=np.uint8),
            y=np.array([0.5, -1.0, 2.0, 3.0, 4.0], dtype=np.float32),
            split=np.array([0, 0, 1, 0, 2], dtype=np.uint8),
            valid_order=np.array([2], dtype=np.int32),
            val12k=np.array([2], dtype=np.int32),
            test12k=np.array([4], dtype=np.int32),
            train10k_random=np.array([3, 0], dtype=np.int32),
        )
        for split, y in (("val", 7.0), ("test", 8.0)):
            np.savez_compressed(
                self.path("zinc", "subset_official", f"{split}.npz"),
                x=np.array([1, 2, 3], dtype=np.uint8),
                edge_index=np.array([[0, 1, 1, 2], [1, 0, 2, 1]], dtype=np.uint8),
                edge_attr=np.array([1, 1, 2, 2], dtype=np.uint8),
                y=np.array([y], dtype=np.float32),
                slices_x=np.array([0, 3], dtype=np.int32),
                slices_edge=np.array([0, 4], dtype=np.int32),
            )

    def peptides(self) -> None:
        """Three peptides of 3, 2 and 2 atoms; sets train, val, test."""
        np.savez_compressed(
            self.path("peptides-func", "peptides_func_graphs.npz"),
            node_feat=np.arange(7 * 9, dtype=np.uint8).reshape(7, 9),
            edge=np.array([[0, 1], [2, 1], [0, 1], [1, 0]], dtype=np.uint16),
            edge_feat=np.arange(12, dtype=np.uint8).reshape(4, 3),
            num_nodes=np.array([3, 2, 2], dtype=np.uint16),
            num_bonds=np.array([2, 1, 1], dtype=np.uint16),
            y=np.eye(10, dtype=np.int8)[:3],
            split=np.array([0, 1, 2], dtype=np.uint8),
        )

    def tu(self, name: str = "ENZYMES", graphs: int = 20) -> None:
        """Paths of 3 nodes, ids and classes from 1; two attributes, node labels 1..3; benchmarking-gnns folds."""
        raw = ("tu_graphs", name, "raw")
        edges, indicator, attributes = [], [], []
        for graph in range(graphs):
            first = 3 * graph + 1
            edges += [(first, first + 1), (first + 1, first), (first + 1, first + 2), (first + 2, first + 1)]
            indicator += [graph + 1] * 3
            attributes += [f"{graph}.5, {node}.0" for node in range(3)]
        self.path(*raw, f"{name}_A.txt").write_text("".join(f"{s}, {t}\n" for s, t in edges))
        self.path(*raw, f"{name}_graph_indicator.txt").write_text("".join(f"{i}\n" for i in indicator))
        self.path(*raw, f"{name}_graph_labels.txt").write_text("".join(f"{1 + g % 2}\n" for g in range(graphs)))
        self.path(*raw, f"{name}_node_labels.txt").write_text("1\n2\n3\n" * graphs)
        self.path(*raw, f"{name}_node_attributes.txt").write_text("".join(f"{line}\n" for line in attributes))
        numbers = np.arange(graphs).reshape(10, -1)
        for split, shift in (("test", 0), ("val", 1)):
            rows = "".join(",".join(map(str, row)) + "\n" for row in np.roll(numbers, -shift, axis=0))
            self.path("tu_graphs", name, "benchmarking-gnns_splits", f"{name}_{split}.index").write_text(rows)
        rest = [np.delete(numbers, [k, (k + 1) % 10], axis=0).ravel() for k in range(10)]
        rows = "".join(",".join(map(str, row)) + "\n" for row in rest)
        self.path("tu_graphs", name, "benchmarking-gnns_splits", f"{name}_train.index").write_text(rows)

    def dgcnn(self, name: str = "MUTAG", tags: tuple[int, int, int] = (4, 2, 4), graphs: int = 20) -> Path:
        """Paths of 3 nodes with classes 2 and 1; ``n label``, then ``tag degree neighbours``; folds from 1."""
        rows = f"{tags[0]} 1 1\n{tags[1]} 2 0 2\n{tags[2]} 1 1\n"
        text = f"{graphs}\n" + "".join(f"3 {2 - graph % 2}\n{rows}" for graph in range(graphs))
        target = self.path("tu_graphs", name, f"{name}.txt")
        target.write_text(text)
        numbers = np.arange(graphs).reshape(10, -1)
        for fold in range(10):
            rest = np.delete(numbers, fold, axis=0).ravel()
            folder = ("tu_graphs", name, "10fold_idx")
            self.path(*folder, f"test_idx-{fold + 1}.txt").write_text("\n".join(map(str, numbers[fold])) + "\n")
            self.path(*folder, f"train_idx-{fold + 1}.txt").write_text("\n".join(map(str, rest)) + "\n")
        return target


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RawFiles:
    """An empty data folder that ``GRAPHATTN_DATA`` names."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("GRAPHATTN_DATA", str(folder))
    return RawFiles(folder)
