"""What a user brings: a model that knows nothing of graphattn, data, a transform. Used by class path in tests."""

from __future__ import annotations

import os
import random
import signal
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import BaseTransform

from graphattn.training import GraphDataModule


class Net(nn.Module):
    """A small GCN with dropout. Environment variables make it slow, or at one training step die or spoil its output."""

    def __init__(self, width: int = 8, out: int = 2, dropout: float = 0.0, seed: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, width)
        self.conv = GCNConv(width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, out)
        self.steps = 0

    def forward(self, x: Tensor, edge_index: Tensor, noise: Tensor | None = None) -> Tensor:
        out = self.head(self.dropout(self.conv(self.embed(x), edge_index).relu()))
        if self.training:
            self.steps += 1
            time.sleep(float(os.environ.get("TOY_SLEEP", 0)))
            if self.steps == int(os.environ.get("TOY_DIE_AT", 0)):
                os.kill(os.getpid(), getattr(signal, os.environ["TOY_SIGNAL"]))
            if self.steps == int(os.environ.get("TOY_NAN_AT", 0)):
                return out * float("nan")
        return out if noise is None else out + noise


class Jitter(BaseTransform):
    """Noise from all three random generators, so that a resumed run shows whether each was restored."""

    def forward(self, data: Data) -> Data:
        data.noise = 0.1 * (torch.rand(1) + float(np.random.rand()) + random.random() - 1.5)
        return data


def make_graphs(count: int, seed: int) -> list[Data]:
    """Small random graphs; a node's label says whether its id is 1."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for _ in range(count):
        nodes = int(torch.randint(4, 9, (1,), generator=generator))
        x = torch.randint(0, 3, (nodes,), generator=generator)
        edge_index = torch.randint(0, nodes, (2, 3 * nodes), generator=generator)
        graphs.append(Data(x=x, edge_index=edge_index, y=(x == 1).long()))
    return graphs


class ToyData(GraphDataModule):
    """20 / 6 / 6 small graphs."""

    def __init__(self, batch_size: int = 4, num_workers: int = 0) -> None:
        super().__init__("toy", batch_size=batch_size, num_workers=num_workers)

    def setup(self, stage: str | None = None) -> None:
        splits = {name: make_graphs(count, seed) for seed, (name, count) in enumerate(SIZES.items())}
        self.splits = SimpleNamespace(**splits)


class OddData(ToyData):
    """Splits that two processes cannot share evenly, yes-or-no labels of nodes, and training nodes without one."""

    def setup(self, stage: str | None = None) -> None:
        super().setup()
        for name, count in {"val": 7, "test": 5}.items():
            setattr(self.splits, name, make_graphs(count, seed=10 + count))
        generator = torch.Generator().manual_seed(0)
        for name, graphs in vars(self.splits).items():
            for number, data in enumerate(graphs):
                data.y = data.y.float()
                data.pe = torch.randn(len(data.x), 2, generator=generator)  # no two nodes score the same
                if name == "train" and number % 3 == 0:
                    data.y[1:] = float("nan")


SIZES = {"train": 20, "val": 6, "test": 6}
