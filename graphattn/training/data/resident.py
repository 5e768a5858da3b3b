"""Graphs that stay on the training device, and batches that are put together there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Batch, InMemoryDataset

from graphattn.errors import ConfigError
from graphattn.training.data.common import free_memory

__all__ = ["ResidentGraphs"]

Numbers = NDArray[np.int64]


class ResidentGraphs:
    """Makes a batch of a list of graph numbers, as PyG's collation does, by indexing tensors on a device.

    Small graphs are collated faster by a few index operations than one after another in Python, and nothing but their
    numbers moves to the device. The sizes of a batch stay known to the host: nothing waits for the device.

    Args:
        dataset: A set with its tensors in memory. Splits of one set share what is held on the device.
        device: Where batches are wanted.
        held: What earlier sets of the same module put on the device; shared and filled.

    Raises:
        ConfigError: If the set is not held as tensors, has a ``transform``, or does not fit the device.
    """

    def __init__(self, dataset: Any, device: torch.device, held: dict[int, dict[str, Tensor]]) -> None:
        if not isinstance(dataset, InMemoryDataset) or dataset.slices is None:
            raise ConfigError(
                f"on_device needs a set of graphs held as tensors (PyG's InMemoryDataset), got {type(dataset).__name__}"
            )
        if dataset.transform is not None:
            raise ConfigError(
                f"on_device cannot apply the transform {dataset.transform!r} to one graph at a time: make it a "
                "pre_transform, or the task's train_transform, which runs on batches"
            )
        data = dataset._data
        lists = [key for key, value in data.to_dict().items() if not isinstance(value, Tensor)]
        if lists or "x" not in dataset.slices:
            raise ConfigError(
                f"on_device needs tensors only, x among them; got {sorted(data.keys())}, {lists} are lists"
            )
        if id(data) not in held:
            _check_room(type(dataset).__name__, data, device)
            held[id(data)] = {key: value.to(device) for key, value in data.to_dict().items()}
        self.device = device
        self.values = held[id(data)]
        self.graphs = np.asarray(dataset.indices(), dtype=np.int64)
        self.axis = {key: data.__cat_dim__(key, value) for key, value in self.values.items()}
        self.counted = {key for key in self.values if "index" in key or key == "face"}  # node ids: PyG's own rule
        self.borders, self.like = _distinct({key: dataset.slices[key].numpy() for key in self.values})

    def __call__(self, numbers: Sequence[int]) -> Batch:
        """The batch of these graphs, in this order."""
        graphs = self.graphs[np.asarray(numbers, dtype=np.int64)]
        sizes = {name: border[graphs + 1] - border[graphs] for name, border in self.borders.items()}
        starts = {name: np.concatenate([[0], np.cumsum(size)]) for name, size in sizes.items()}
        nodes = self.like["x"]
        # One copy to the device for everything that the host works out.
        parts: dict[str | tuple[str, str], Numbers] = {
            ("rows", name): _rows(self.borders[name][graphs], sizes[name], starts[name]) for name in sizes
        }
        parts["batch"] = np.repeat(np.arange(len(graphs)), sizes[nodes])
        parts["ptr"] = starts[nodes]
        parts |= {("shift", n): np.repeat(starts[nodes][:-1], sizes[n]) for n in {self.like[k] for k in self.counted}}
        moved = dict(zip(parts, self._move(list(parts.values())), strict=True))

        batch = Batch()
        for key, value in self.values.items():
            name = self.like[key]
            taken = value.index_select(self.axis[key], moved["rows", name])
            batch[key] = taken + moved["shift", name] if key in self.counted else taken
        batch.batch, batch.ptr = moved["batch"], moved["ptr"]
        batch._num_graphs = len(graphs)
        batch._slice_dict = {key: torch.from_numpy(starts[self.like[key]]) for key in self.values}
        shifts, none = torch.from_numpy(starts[nodes][:-1]), torch.zeros(len(graphs), dtype=torch.long)
        batch._inc_dict = {key: shifts if key in self.counted else none for key in self.values}
        return batch

    def _move(self, parts: list[Numbers]) -> tuple[Tensor, ...]:
        whole = torch.from_numpy(np.concatenate(parts))
        if self.device.type == "cuda":
            whole = whole.pin_memory()
        return whole.to(self.device, non_blocking=True).split([len(part) for part in parts])


def _rows(first: Numbers, sizes: Numbers, starts: Numbers) -> Numbers:
    """The numbers ``first[i], first[i] + 1, ...``, ``sizes[i]`` of them, for one i after another."""
    return np.repeat(first - starts[:-1], sizes) + np.arange(starts[-1])


def _distinct(borders: dict[str, Numbers]) -> tuple[dict[str, Numbers], dict[str, str]]:
    """Borders that differ, each under its first field, and for each field where its own are (node fields share)."""
    kept: dict[str, Numbers] = {}
    like: dict[str, str] = {}
    for key, border in borders.items():
        same = next((name for name, other in kept.items() if np.array_equal(border, other)), key)
        kept.setdefault(same, border)
        like[key] = same
    return kept, like


def _check_room(name: str, data: Any, device: torch.device) -> None:
    free = free_memory(device)
    needed = sum(value.nbytes for value in data.to_dict().values())
    if free is not None and needed > 0.8 * free:  # the rest is for the model
        raise ConfigError(
            f"{name} takes {needed / 2**30:.1f} GiB; {device} has {free / 2**30:.1f} GiB free: set on_device to false"
        )
