"""Batches in tensors that stay where they are, graphs filled up to one size, so that a step can be one CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Batch

from graphattn.errors import ConfigError

__all__ = ["IGNORED", "PaddedBatch", "Sizes", "TensorBatch", "room_for", "sizes_of"]

IGNORED = -100  # as torch.nn.functional.cross_entropy has it


class Sizes(NamedTuple):
    """What a batch takes."""

    nodes: int
    edges: int
    graphs: int
    pairs: int | None
    """Sum over graphs of the squared number of nodes; ``None``: nobody asks."""

    def holds(self, other: Sizes) -> bool:
        """Whether the other batch can be filled up to this size."""
        if other.nodes >= self.nodes or other.edges > self.edges:
            return False
        fill = self.filling(other)
        return fill is not None and other.graphs + len(fill) <= self.graphs

    def joined(self, other: Sizes) -> Sizes:
        """Enough for either."""
        pairs = None if self.pairs is None or other.pairs is None else max(self.pairs, other.pairs)
        return Sizes(max(self.nodes, other.nodes), max(self.edges, other.edges), max(self.graphs, other.graphs), pairs)

    def filling(self, other: Sizes) -> list[int] | None:
        """Sizes of the graphs that fill the other batch up; ``None``: there are none."""
        spare = self.nodes - other.nodes
        if self.pairs is None or other.pairs is None:
            usual = max(1, -(-other.nodes // other.graphs))  # of its own size, so that they cost what others do
            return [usual] * (spare // usual) + [spare % usual] * (spare % usual > 0)
        return filling(spare, self.pairs - other.pairs)


def sizes_of(batch: Batch, pairs: bool = True) -> Sizes:
    """The sizes of a batch, without waiting for the device.

    Args:
        batch: PyG's.
        pairs: Whether anybody asks for the pairs.

    Raises:
        ConfigError: If the batch does not know them.
    """
    slices = getattr(batch, "_slice_dict", {})
    if "x" not in slices or "edge_index" not in slices:
        raise ConfigError(f"capture needs batches of graphs with x and edge_index (GraphDataModule), got {batch}")
    each = slices["x"].diff()
    squares = int(each.square().sum()) if pairs else None
    return Sizes(int(slices["x"][-1]), int(slices["edge_index"][-1]), len(each), squares)


def room_for(sizes: Sizes, slack: float = 0.06) -> Sizes:
    """A size that holds batches of about these sizes.

    Where pairs count, the graphs that fill a batch up must bring both the missing nodes and the missing pairs, so there
    are nodes to spare for one graph of all missing pairs, and as many again.
    """
    nodes = math.ceil(sizes.nodes * (1 + slack)) + 1
    pairs = None
    graphs = 2 * sizes.graphs + 2
    if sizes.pairs is not None:
        pairs = math.ceil(sizes.pairs * (1 + 4 * slack)) + 64
        nodes += 2 * math.isqrt(pairs)
        graphs = sizes.graphs + _up(nodes)
    nodes = _up(nodes)
    if pairs is not None:
        pairs += (pairs - nodes) % 2  # a number and its square are both even or both odd
    edges = _up(math.ceil(sizes.edges * (1 + slack)) + 1)
    # Norms tell rows of nodes, edges and graphs by their number.
    while edges == nodes:
        edges += 64
    while graphs in (nodes, edges):
        graphs += 1
    return Sizes(nodes, edges, graphs, pairs)


class PaddedBatch:
    """A batch in tensors that stay where they are, filled up with graphs of nodes that read one another only.

    Labels of what was filled up are NaN (floating) or -100 (integers), which losses leave out.

    Args:
        like: A batch with the fields that all have.
        room: The size of every batch.
    """

    def __init__(self, like: Batch, room: Sizes) -> None:
        self.room, self.rows = room, {}
        device = like.edge_index.device
        slices: dict[str, Tensor] = like._slice_dict
        self.batch = Batch()
        self.edge_index = torch.zeros(2, room.edges, dtype=torch.long, device=device)
        for key, value in like.to_dict().items():
            if key in ("edge_index", "batch", "ptr"):
                continue
            if not isinstance(value, Tensor) or "index" in key or key not in slices:
                raise ConfigError(
                    f"capture can fill up tensors of nodes, edges and graphs, not {key!r} ({value!r:.60})"
                )
            self.rows[key] = _kind(key, slices)
            size = getattr(room, self.rows[key])
            fill = _unlabelled(value) if key == "y" else 0
            self.batch[key] = torch.full((size, *value.shape[1:]), fill, dtype=value.dtype, device=device)
        # What the host works out, in one tensor that takes one copy: ptr, batch, filling edges, the three counts.
        lengths = (room.graphs + 1, room.nodes, room.edges, 3)
        self._host = torch.zeros(sum(lengths), dtype=torch.long, device=device)
        self.batch.ptr, self.batch.batch, self._loops, counts = self._host.split(lengths)
        self.counts = dict(zip((room.nodes, room.edges, room.graphs), counts.unbind(), strict=True))
        self._place = torch.arange(room.edges, device=device)
        self.batch.edge_index = self.edge_index
        self.batch._num_graphs = room.graphs
        if room.pairs is not None:
            self.batch.num_pairs = room.pairs
        self.real: Sizes = room

    def fill(self, batch: Batch) -> None:
        """Take over a batch.

        Raises:
            ConfigError: If its fields are others than those of the first.
        """
        sizes = self.real = sizes_of(batch, self.room.pairs is not None)
        each = batch._slice_dict["x"].diff().numpy()
        self._copy_to_device(each, sizes)
        for key, rows in self.rows.items():
            value, size = batch.get(key), getattr(sizes, rows)
            if value is None or value.shape[0] != size:
                raise ConfigError(
                    f"capture needs the same fields in each batch, {size} rows of {key!r}, got {value!r:.60}"
                )
            kept: Tensor = self.batch[key]
            kept[:size].copy_(value)
            if key == "y":
                kept[size:].fill_(_unlabelled(value))
        self.edge_index[:, : sizes.edges].copy_(batch.edge_index)

    def ready(self) -> Batch:
        """The batch as a model takes it. Everything in here may be part of a CUDA graph."""
        real = self._place < self.counts[self.room.edges]
        self.batch.edge_index = torch.where(real, self.edge_index, self._loops)
        return self.batch

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.edge_index.device

    def real_rows(self, x: Tensor) -> Tensor:
        """Of a tensor with a row for each node or graph, those that were not filled up.

        Raises:
            ConfigError: If it has other rows.
        """
        real = {self.room.nodes: self.real.nodes, self.room.graphs: self.real.graphs}
        if x.shape[0] not in real:
            raise ConfigError(f"capture needs a prediction for each node or graph of a batch, got {list(x.shape)}")
        return x[: real[x.shape[0]]]

    def _copy_to_device(self, each: NDArray[np.int64], sizes: Sizes) -> None:
        room = self.room
        spare = room.nodes - sizes.nodes
        fill = room.filling(sizes)
        assert fill is not None
        members = np.zeros(room.graphs, dtype=np.int64)
        members[: len(each)] = each
        members[len(each) : len(each) + len(fill)] = fill
        loops = sizes.nodes + np.arange(room.edges) % spare
        counts = [sizes.nodes, sizes.edges, sizes.graphs]
        parts = ([0], np.cumsum(members), np.repeat(np.arange(room.graphs), members), loops, counts)
        whole = torch.from_numpy(np.concatenate(parts))
        self._host.copy_(whole.pin_memory() if self._host.is_cuda else whole, non_blocking=True)


class TensorBatch:
    """A batch of named tensors (images and labels, say) in tensors that stay where they are.

    Args:
        like: A batch of the size of all. What is no tensor in it does not reach a recorded step.

    Raises:
        ConfigError: If there is no tensor in it.
    """

    def __init__(self, like: Mapping[str, Any]) -> None:
        self.tensors = {key: torch.empty_like(value) for key, value in like.items() if isinstance(value, Tensor)}
        if not self.tensors:
            raise ConfigError(f"capture needs batches of graphs or of named tensors, got {sorted(like)}")
        self.counts: dict[int, Tensor] = {}  # of rows that are filled up: none

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return next(iter(self.tensors.values())).device

    def holds(self, batch: Mapping[str, Any]) -> bool:
        """Whether another batch has the same tensors in the same shapes."""
        return self._rows(batch) == self._rows(self.tensors)

    def is_larger_than(self, batch: Mapping[str, Any]) -> bool:
        """Whether another batch is alike, but of fewer rows."""
        mine, theirs = self._rows(self.tensors), self._rows(batch)
        alike = {key: mine[key][1:] for key in mine} == {key: theirs[key][1:] for key in theirs}
        return alike and all(theirs[key][0] < mine[key][0] for key in mine)

    def fill(self, batch: Mapping[str, Any]) -> None:
        """Take over a batch."""
        for key, kept in self.tensors.items():
            kept.copy_(batch[key], non_blocking=True)

    def ready(self) -> dict[str, Tensor]:
        """The batch as a model takes it."""
        return dict(self.tensors)

    def real_rows(self, x: Tensor) -> Tensor:
        """All rows."""
        return x

    @staticmethod
    def _rows(batch: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        return {
            key: (x.shape[0] if x.dim() else 0, x.shape[1:], x.dtype)
            for key, x in batch.items()
            if isinstance(x, Tensor)
        }


def filling(nodes: int, pairs: int) -> list[int] | None:
    """Sizes of graphs that together have so many nodes and so many pairs, the larger first; ``None``: not found."""
    sizes = []
    while nodes and pairs >= nodes:
        # The largest graph that leaves a pair for each of the other nodes: s * s + (nodes - s) <= pairs.
        size = min((1 + math.isqrt(1 + 4 * (pairs - nodes))) // 2, nodes)
        sizes.append(size)
        nodes, pairs = nodes - size, pairs - size * size
    return None if nodes or pairs else sizes


def _unlabelled(y: Tensor) -> float:
    return math.nan if y.is_floating_point() else IGNORED


def _kind(key: str, slices: dict[str, Tensor]) -> str:
    mine = slices[key]
    if torch.equal(mine, slices["x"]):
        return "nodes"
    if torch.equal(mine, slices["edge_index"]):
        return "edges"
    if torch.equal(mine, torch.arange(len(mine))):
        return "graphs"
    raise ConfigError(f"capture can fill up fields with a row for each node, edge or graph; {key!r} has others")


def _up(number: int, step: int = 64) -> int:
    return -(-number // step) * step
