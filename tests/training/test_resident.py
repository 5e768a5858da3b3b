from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.loader import DataLoader

import graphattn_datasets
from graphattn.errors import ArgumentError, ConfigError
from graphattn.training import GraphDataModule
from graphattn.training.data.resident import ResidentGraphs


class Held(InMemoryDataset):
    """Graphs of 1 to 6 nodes, one of them without edges, with fields of all kinds."""

    def __init__(self, count: int = 12, transform: Any = None) -> None:
        super().__init__(None, transform)
        generator = torch.Generator().manual_seed(0)
        graphs = []
        for i in range(count):
            nodes = 1 + i % 6
            edges = torch.randint(0, nodes, (2, 0 if i == 2 else 3 * nodes), generator=generator)
            graphs.append(
                Data(
                    x=torch.randint(0, 9, (nodes, 2), generator=generator),
                    edge_index=edges,
                    edge_attr=torch.randn(edges.shape[1], 3, generator=generator),
                    pe=torch.randn(nodes, 4, generator=generator),
                    expander_index=torch.randint(0, nodes, (2, 2 * nodes), generator=generator),
                    y=torch.tensor([[float(i)]]),
                )
            )
        self.data, self.slices = self.collate(graphs)


CPU = torch.device("cpu")


@pytest.mark.parametrize("part", [slice(None), [7, 2, 2, 11, 0], torch.tensor([3, 4, 5])])
def test_batches_are_those_of_pyg(part: Any):
    graphs = Held()[part]
    together = ResidentGraphs(graphs, CPU, {})
    for numbers in ([0], [2, 1], list(range(len(graphs)))):
        ours = together(numbers)
        theirs = next(iter(DataLoader([graphs[i] for i in numbers], batch_size=len(numbers))))
        assert set(ours.keys()) == set(theirs.keys())
        for key in theirs.keys():
            assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]), key
        assert ours.num_graphs == theirs.num_graphs and ours.num_nodes == theirs.num_nodes
        for mine, wanted in zip(ours.to_data_list(), theirs.to_data_list(), strict=True):
            assert all(torch.equal(mine[key], wanted[key]) for key in wanted.keys())


def test_splits_of_one_set_are_held_once():
    graphs, held = Held(), {}
    first, second = ResidentGraphs(graphs[:6], CPU, held), ResidentGraphs(graphs[6:], CPU, held)
    assert len(held) == 1 and first.values is second.values
    assert second([0]).y.item() == 6.0


def test_a_training_epoch_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch):
    splits = SimpleNamespace(train=Held()[:8], val=Held()[8:10], test=Held()[10:])
    monkeypatch.setattr(graphattn_datasets, "load_dataset", lambda name, **rest: splits, raising=False)
    seen = []
    for on_device in (False, True):
        data = GraphDataModule("held", batch_size=3, seed=4, on_device=on_device)
        data.setup()
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        seen.append([batch.y.flatten().tolist() for loader in loaders for batch in loader])
    assert seen[0] == seen[1] and len(seen[0]) == 5


def test_what_cannot_stay_on_a_device_is_one_clear_error():
    with pytest.raises(ConfigError, match="held as tensors .*, got list"):
        ResidentGraphs([Data(x=torch.ones(1, 1))], CPU, {})
    with pytest.raises(ConfigError, match="cannot apply the transform"):
        ResidentGraphs(Held(transform=lambda data: data), CPU, {})
    with pytest.raises(ArgumentError, match="num_workers must be 0, got 2"):
        GraphDataModule("held", on_device=True, num_workers=2)
