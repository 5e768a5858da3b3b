"""Graphs whose nodes have a text, a feature row, or both: what prompts are written about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.paths import DATA_VARIABLE, data_folder, data_setting

__all__ = ["TEXT_GRAPHS", "TextGraph", "bag_of_words", "load_text_graph", "split_links", "split_nodes"]

# The files number the classes and do not name them. The names are those of the data set from which the files were made
# (McCallum et al., 2000); which is which was read off the words that set a class apart: 0 neural network, 1
# reinforcement policy, 2 bayesian belief, 3 pac learner, 4 genetic fitness, 5 casebased reasoning, 6 ilp clauses.
_CORA = (
    "Neural Networks",
    "Reinforcement Learning",
    "Probabilistic Methods",
    "Theory",
    "Genetic Algorithms",
    "Case Based",
    "Rule Learning",
)
TEXT_GRAPHS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cane_cora": ("cane_tag/cora", _CORA),
    "cane_hepth": ("cane_tag/HepTh", ()),
}
"""Folder under ``$GRAPHATTN_DATA``, and names of the classes."""


@dataclass(repr=False)
class TextGraph:
    """An undirected graph in rows of neighbours, without self-loops and duplicates, and what is known of its nodes."""

    name: str
    rowptr: Tensor
    """int64 ``[N + 1]``."""
    col: Tensor
    """int64 ``[E]``, both directions: the neighbours of node ``n`` are ``col[rowptr[n]:rowptr[n + 1]]``, ascending."""
    x: Tensor
    """Float ``[N, F]`` feature rows."""
    y: Tensor
    """int64 ``[N]`` classes, -1 for a node without."""
    classes: tuple[str, ...] = ()
    """The words that answer."""
    texts: list[str] = field(default_factory=list)
    """N texts, or none."""
    split: Tensor | None = None
    """int64 ``[N]``: 0 training, 1 validation, 2 test, -1 none of them, where the source has a split."""

    def __repr__(self) -> str:
        told = [f"{self.num_nodes} nodes", f"{self.col.shape[0] // 2} edges", f"{self.x.shape[-1]} features"]
        told += [f"{len(self.classes)} classes"] if self.classes else []
        told += ["texts"] if self.texts else []
        told += [] if self.split is None else ["split"]
        return f"{type(self).__name__}({self.name!r}, {', '.join(told)})"

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.rowptr.shape[0] - 1

    @property
    def edge_index(self) -> Tensor:
        """int64 ``[2, E]``, both directions."""
        source = torch.repeat_interleave(torch.arange(self.num_nodes, device=self.col.device), self.rowptr.diff())
        return torch.stack([source, self.col])

    def to(self, device: torch.device | str) -> TextGraph:
        """The same graph, its tensors on a device."""
        split = None if self.split is None else self.split.to(device)
        rowptr, col, x, y = (x.to(device) for x in (self.rowptr, self.col, self.x, self.y))
        return TextGraph(self.name, rowptr, col, x, y, self.classes, self.texts, split)

    def with_edges(self, edge_index: Tensor) -> TextGraph:
        """The same nodes with other edges (both directions are made)."""
        rowptr, col = _rows(edge_index, self.num_nodes)
        return TextGraph(self.name, rowptr, col, self.x, self.y, self.classes, self.texts, self.split)

    @classmethod
    def from_data(cls, data: Any, classes: Sequence[str] | None = None, name: str = "") -> TextGraph:
        """A PyG ``Data`` with ``x``, ``y`` and, perhaps, masks ``[N]``: a set of
        :func:`graphattn_datasets.load_dataset`.

        Args:
            data: The graph.
            classes: The words that answer; default ``"class 0"``, ``"class 1"``, ...
            name: For messages.
        """
        count = int(data.y.max()) + 1
        words = tuple(classes) if classes is not None else tuple(f"class {number}" for number in range(count))
        if len(words) != count:
            raise ArgumentError(f"classes must name {count} classes, got {len(words)}")
        split = None
        if getattr(data, "train_mask", None) is not None:
            split = torch.full((data.num_nodes,), -1)
            for number, key in enumerate(("train_mask", "val_mask", "test_mask")):
                split[getattr(data, key)] = number
        rowptr, col = _rows(data.edge_index, data.num_nodes)
        return cls(name, rowptr, col, data.x.float(), data.y.long(), words, [], split)


def load_text_graph(name: str, root: str | Path | None = None, *, seed: int = 0, words: int = 1000) -> TextGraph:
    """A text-attributed citation graph of CANE (Tu et al., ACL 2017): ``"cane_cora"`` (2,277 papers with abstracts,
    2,211 of them in 7 classes; not the Cora of Planetoid) or ``"cane_hepth"`` (1,038 papers, for links).

    Args:
        name: See above.
        root: The folder with ``data.txt``, ``graph.txt`` and, for Cora, ``group.txt``; default: the one under
            ``$GRAPHATTN_DATA``.
        seed: Of the split of labelled nodes, 60 / 20 / 20 % of each class (:func:`split_nodes`); there is no official
            one.
        words: Width of the feature rows, see :func:`bag_of_words`.

    Raises:
        ArgumentError: If there is no such graph.
        DataError: If a file is not there or not of the expected form.
    """
    if name not in TEXT_GRAPHS:
        raise ArgumentError(f"name must be one of {sorted(TEXT_GRAPHS)}, got {name!r}")
    folder, classes = TEXT_GRAPHS[name]
    if root is None:
        base = data_folder()
        if base is None:
            raise DataError(f"{name} needs the folder {folder} under ${DATA_VARIABLE} ({data_setting()})")
        root = base / folder
    texts = _lines(Path(root) / "data.txt")
    edges = [[int(number) for number in line.split()] for line in _lines(Path(root) / "graph.txt")]
    edge_index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).T
    if edge_index.numel() and int(edge_index.max()) >= len(texts):
        raise DataError(f"{root}/graph.txt names node {int(edge_index.max())}, but data.txt has {len(texts)} lines")
    y = torch.full((len(texts),), -1, dtype=torch.int64)
    if classes:
        groups = [line.strip() for line in _lines(Path(root) / "group.txt")]
        if len(groups) != len(texts):
            raise DataError(f"{root}/group.txt must have a line for each of {len(texts)} nodes, got {len(groups)}")
        y = torch.tensor([int(group) if group else -1 for group in groups])
        if int(y.max()) >= len(classes):
            raise DataError(f"{root}/group.txt must hold classes 0 to {len(classes) - 1}, got {int(y.max())}")
    rowptr, col = _rows(edge_index, len(texts))
    split = split_nodes(y, seed=seed) if classes else None
    return TextGraph(name, rowptr, col, bag_of_words(texts, words), y, classes, texts, split)


def bag_of_words(texts: Sequence[str], words: int) -> Tensor:
    """Features of texts: term frequency times inverse document frequency, rows of length 1.

    Args:
        texts: N texts.
        words: How many words count, those in most texts (of equally many, the first of the alphabet); words in
            more than half of the texts do not.

    Returns:
        float32 ``[N, min(words, words that there are)]``.
    """
    counts = [Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in texts]
    found = Counter(word for count in counts for word in count)
    ranked = sorted((word for word in found if 2 * found[word] <= len(texts)), key=lambda word: (-found[word], word))
    column = {word: at for at, word in enumerate(ranked[:words])}
    x = torch.zeros(len(texts), len(column))
    entries = [
        (row, column[word], n) for row, count in enumerate(counts) for word, n in count.items() if word in column
    ]
    if entries:
        rows, columns, values = (torch.tensor(part) for part in zip(*entries, strict=True))
        x[rows, columns] = values.float()
    rare = torch.tensor([len(texts) / found[word] for word in column]).log()
    return torch.nn.functional.normalize(x * rare, dim=1)


def split_nodes(y: Tensor, shares: tuple[float, float] = (0.6, 0.2), *, seed: int = 0) -> Tensor:
    """A seeded split of the labelled nodes, class by class.

    Args:
        y: int64 ``[N]``, -1 for a node without a class.
        shares: Of training and validation; the rest is for the test.
        seed: Of the order.

    Returns:
        int64 ``[N]``: 0, 1, 2, and -1 for nodes without a class.
    """
    generator = torch.Generator().manual_seed(seed)
    split = torch.full_like(y, -1)
    for label in range(int(y.max()) + 1):
        members = (y == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        ends = [round(len(members) * shares[0]), round(len(members) * sum(shares))]
        for number, part in enumerate(members.tensor_split(ends)):
            split[part] = number
    return split


def split_links(
    graph: TextGraph, shares: tuple[float, float] = (0.85, 0.05), *, seed: int = 0
) -> tuple[TextGraph, dict[str, tuple[Tensor, Tensor]]]:
    """Links to predict: the edges are split, and as many pairs without an edge are drawn.

    Args:
        graph: The graph.
        shares: Of training and validation; the rest is for the test.
        seed: Of the order and the pairs.

    Returns:
        The graph of the training edges, and for ``"train"``, ``"val"`` and ``"test"`` pairs int64 ``[2, P]`` with int64
        ``[P]``, 1 where they are linked. No pair without an edge comes twice.
    """
    generator = torch.Generator().manual_seed(seed)
    once = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]].cpu()
    once = once[:, torch.randperm(once.shape[1], generator=generator)]
    count, nodes = once.shape[1], graph.num_nodes
    if count > nodes * (nodes - 1) // 4:
        raise ArgumentError(f"split_links draws as many pairs as there are edges, {count}: the graph is too dense")
    taken = once[0] * nodes + once[1]
    fresh = taken[:0]
    while fresh.numel() < count:
        pair = torch.randint(nodes, (2, 2 * count), generator=generator).sort(0).values
        key = (pair[0] * nodes + pair[1])[pair[0] < pair[1]]
        key = torch.cat([fresh, key[~torch.isin(key, taken)]])
        drawn, where = key.unique(return_inverse=True)  # in the order in which they were drawn
        first = torch.full_like(drawn, len(key)).scatter_reduce(0, where, torch.arange(len(key)), "amin")
        fresh = key[first.sort().values]
    ends = [round(count * shares[0]), round(count * sum(shares))]
    parts = {}
    none = torch.stack([fresh[:count] // nodes, fresh[:count] % nodes])
    for name, yes, no in zip(
        ("train", "val", "test"), once.tensor_split(ends, 1), none.tensor_split(ends, 1), strict=True
    ):
        label = torch.cat([torch.ones(yes.shape[1]), torch.zeros(no.shape[1])]).long()
        parts[name] = (torch.cat([yes, no], 1), label)
    return graph.with_edges(once[:, : ends[0]].to(graph.col.device)), parts


def _rows(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Rows of neighbours, both directions, each once, without self-loops."""
    source, target = torch.cat([edge_index, edge_index.flip(0)], 1)
    key = (source * num_nodes + target)[source != target].unique()
    count = torch.bincount(key // max(num_nodes, 1), minlength=num_nodes)
    return torch.cat([count.new_zeros(1), count.cumsum(0)]), key % max(num_nodes, 1)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} is not there")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines
