"""One graph and the edges that are to be predicted in it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training.data.common import Transforms, check_finite, compose, load
from graphattn.training.data.order import EpochBatches, epoch_sampler, whole_split

__all__ = ["LinkDataModule"]


class LinkDataModule(LightningDataModule):
    """Link prediction: each batch is the whole training graph and some edges to score.

    The graph moves to the device once. A training batch has ``edge_label_index`` ``[2, B]``, existing edges (the task
    draws those that do not exist). A validation or test batch has also ``edge_label`` ``[B]``, 1 or 0; where each edge
    is ranked among negatives of its own (``mrr``), its row is ``1 + K`` entries one after another, the edge first, and
    ``num_candidates`` is ``1 + K``.

    Args:
        name: A name of ``graphattn list datasets`` whose splits are edges, ``"ogbl_ddi"``.
        root: Where files are looked for and downloaded to; ``None``: the data set's own rule.
        pre_transform: Applied once, the result is cached; one or a list.
        transform: Applied when the graph is read; one or a list (:class:`~graphattn.training.NodeIds` where there
            are no features).
        batch_size: Edges in a training batch.
        eval_batch_size: Scores in a validation or test batch.
        drop_targets: Leave the edges of a training batch, both directions, out of the graph that the model sees.
        val_edges_as_input: Testing sees the validation edges too, as the rules of ogbl-collab allow.
        seed: Seed of the order; ``None``: the run's (``seed_everything``).
        options: Further arguments of the data set.

    Raises:
        ArgumentError: If a batch size is below 1.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        pre_transform: Transforms = None,
        transform: Transforms = None,
        batch_size: int = 65536,
        eval_batch_size: int = 262144,
        drop_targets: bool = False,
        val_edges_as_input: bool = False,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ArgumentError(f"{argument} must be at least 1, got {value}")
        self.name = name
        self.root = root
        self.pre_transform = compose(pre_transform)
        self.transform = compose(transform)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.drop_targets = drop_targets
        self.val_edges_as_input = val_edges_as_input
        self.seed = seed
        self.options = dict(options or {})
        self.data: Data | None = None
        self.edges: dict[str, Any] = {}
        self._moved: dict[tuple[str, torch.device], Data] = {}

    def prepare_data(self) -> None:
        """Download and process in one process of each machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the graph and the edges."""
        if self.data is not None:
            return
        dataset = load(self.name, self.root, self.transform, self.pre_transform, self.options)
        if not hasattr(dataset, "get_edge_split"):
            raise ConfigError(
                f"LinkDataModule needs sets of edges; {self.name!r} has none. For masks of nodes use "
                "graphattn.training.NodeDataModule, for sets of graphs GraphDataModule"
            )
        self.edges = dataset.get_edge_split()
        data = dataset[0]
        check_finite(self.name, [data])
        self.data = data

    def train_dataloader(self) -> DataLoader:
        """Training edges, shuffled; seed and epoch alone decide the order."""
        pairs, _, _ = _examples(self.edges["train"])
        order = epoch_sampler(pairs, self.seed, self.trainer, EpochBatches)
        order.batch_size = self.batch_size
        return _loader(_Rows(pairs, None, 1, "train"), sampler=order, generator=order.generator)

    def val_dataloader(self) -> DataLoader:
        """Validation edges and their negatives in their own order."""
        return self._evaluation("valid")

    def test_dataloader(self) -> DataLoader:
        """Test edges and their negatives in their own order."""
        return self._evaluation("test")

    predict_dataloader = test_dataloader

    def _evaluation(self, part: str) -> DataLoader:
        pairs, labels, candidates = _examples(self.edges[part])
        if labels is None:
            raise ConfigError(f"{self.name!r} has no negative edges in its part {part!r}")
        rows = _Rows(pairs, labels, candidates, part)
        processes = self.trainer.world_size if self.trainer else 1
        size = max(1, min(self.eval_batch_size // candidates, len(rows) // processes))  # a batch for each process
        batches = _Batches(rows, size)
        sampler = whole_split(batches, self.trainer)
        return _loader(batches, sampler=sampler, generator=torch.Generator().manual_seed(0))

    def transfer_batch_to_device(self, batch: Data, device: torch.device, dataloader_idx: int) -> Data:
        """The batch with the graph, which is moved once."""
        part = "test" if batch.part == "test" and self.val_edges_as_input else "train"
        key = (part, device)
        if key not in self._moved:
            self._moved[key] = self._input(part).to(device)
        out = copy.copy(self._moved[key])
        out.known_edges = out.edge_index
        batch = batch.to(device)
        for name, value in batch.to_dict().items():
            if name != "num_nodes":
                out[name] = value
        if self.drop_targets and batch.part == "train":
            _drop_edges(out, batch.edge_label_index)
        return out

    def _input(self, part: str) -> Data:
        assert self.data is not None
        if part == "train":
            return self.data
        if self.data.edge_attr is not None:
            raise ConfigError(f"val_edges_as_input: {self.name!r} has edge features, which the new edges lack")
        graph = copy.copy(self.data)
        pairs = self.edges["valid"]["edge"].T
        fresh = torch.stack((pairs, pairs.flip(0)), dim=2).flatten(1)
        graph.edge_index = torch.cat((self.data.edge_index, fresh), dim=1)
        for name in ("weight", "year"):
            values = self.data.get(f"edge_{name}")
            if values is not None:
                more = self.edges["valid"][name].to(values).repeat_interleave(2).view(-1, 1)
                graph[f"edge_{name}"] = torch.cat((values, more))
        return graph


class _Rows:
    """Examples by lists of numbers, each list one batch."""

    def __init__(self, pairs: Tensor, labels: Tensor | None, candidates: int, part: str) -> None:
        self.pairs, self.labels, self.candidates, self.part = pairs, labels, candidates, part

    def __len__(self) -> int:
        return len(self.pairs) // self.candidates

    def __getitem__(self, numbers: Sequence[int]) -> Data:
        rows = torch.as_tensor(numbers)
        if self.candidates > 1:
            rows = (rows.unsqueeze(1) * self.candidates + torch.arange(self.candidates)).view(-1)
        batch = Data(edge_label_index=self.pairs[rows].T.contiguous(), part=self.part)
        if self.labels is not None:
            batch.edge_label = self.labels[rows]
            batch.num_candidates = self.candidates
        return batch


class _Batches:
    """Neighbouring examples, ``size`` at a time."""

    def __init__(self, rows: _Rows, size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, number: int) -> Data:
        return self.rows[range(number * self.size, min((number + 1) * self.size, len(self.rows)))]


def _loader(batches: Any, **options: Any) -> DataLoader:
    """A loader of what is a batch already."""
    return DataLoader(batches, batch_size=None, collate_fn=_same, **options)


def _same(batch: Data) -> Data:
    return batch


def _examples(edges: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, int]:
    """Pairs ``[n, 2]``, labels (``None`` without negatives), and how many rows belong to one edge."""
    if "source_node" in edges:
        source, target = edges["source_node"], edges["target_node"]
        others = edges.get("target_node_neg")
        if others is None:
            return torch.stack((source, target), dim=1), None, 1
        targets = torch.cat((target.unsqueeze(1), others), dim=1)
        pairs = torch.stack((source.unsqueeze(1).expand_as(targets), targets), dim=2).view(-1, 2)
        labels = torch.zeros(targets.shape)
        labels[:, 0] = 1
        return pairs, labels.view(-1), targets.shape[1]
    positive, negative = edges["edge"], edges.get("edge_neg")
    if negative is None:
        return positive, None, 1
    labels = torch.cat((torch.ones(len(positive)), torch.zeros(len(negative))))
    return torch.cat((positive, negative)), labels, 1


def _drop_edges(graph: Data, pairs: Tensor) -> None:
    """Take the pairs, both directions, out of the graph."""
    count = int(graph.num_nodes)
    keys = graph.edge_index[0] * count + graph.edge_index[1]
    gone = torch.cat((pairs[0] * count + pairs[1], pairs[1] * count + pairs[0]))
    keep = ~torch.isin(keys, gone)
    for name in [name for name in graph.keys() if graph.is_edge_attr(name) and name not in _LABELS]:
        value = graph[name]
        graph[name] = value[:, keep] if name == "edge_index" else value[keep]


_LABELS = ("edge_label_index", "edge_label")
