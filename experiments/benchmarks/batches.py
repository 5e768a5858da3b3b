"""Batches of graphs for the epochs: the published procedures, real files where they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.benchmarks import graphs

__all__ = ["Batch", "as_pyg", "make_batches"]


class Batch(NamedTuple):
    """Some graphs on the device."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    pe: Tensor
    y: Tensor
    ptr: Tensor
    num_graphs: int
    longest: int
    """Tokens of the largest graph."""

    @property
    def member(self) -> Tensor:
        """int64 ``[N]``: the graph of each token."""
        return torch.arange(self.num_graphs, device=self.ptr.device).repeat_interleave(
            self.ptr.diff(), output_size=self.x.shape[0]
        )


def make_batches(name: str, count: int, size: int, pe_width: int, device: torch.device) -> list[Batch]:
    """``count`` batches of ``size`` graphs of PATTERN, CLUSTER or ZINC; encodings ``[N, pe_width]`` are random, which
    costs a step as much as real ones."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for some in _molecules(count, size, generator) if name == "zinc" else _sbm(name, count, size):
        x, edge_index, edge_attr, y, ptr = some
        pe = torch.randn(x.shape[0], pe_width, generator=generator)
        tensors = [None if t is None else t.to(device) for t in (x, edge_index, edge_attr, pe, y, ptr)]
        found.append(Batch(*tensors, size, int(ptr.diff().max())))  # type: ignore[arg-type]
    return found


def as_pyg(batch: Batch) -> Any:
    """A batch of PyG, which knows its sizes on the host."""
    from torch_geometric.data import Batch as PygBatch

    found, ptr = PygBatch(), batch.ptr.cpu()
    edges = torch.searchsorted(ptr, batch.edge_index[1].cpu(), right=True).sub(1).bincount(minlength=batch.num_graphs)
    edge_ptr = torch.cat([edges.new_zeros(1), edges.cumsum(0)])
    graph_ptr = torch.arange(batch.num_graphs + 1)
    found._num_graphs, found._slice_dict = batch.num_graphs, {}
    labels = ptr if batch.y.shape[0] == batch.x.shape[0] else graph_ptr
    for key, slices in (("x", ptr), ("edge_index", edge_ptr), ("edge_attr", edge_ptr), ("pe", ptr), ("y", labels)):
        if getattr(batch, key) is not None:
            found[key], found._slice_dict[key] = getattr(batch, key), slices
    found.batch, found.ptr = batch.member, batch.ptr
    return found


def _sbm(name: str, count: int, size: int) -> Iterator[tuple[Any, ...]]:
    """PATTERN and CLUSTER by the published procedure."""
    from graphattn_datasets.sbm import cluster_arrays, pattern_arrays

    total = count * size
    arrays = cluster_arrays(total, "train", 0) if name == "cluster" else pattern_arrays(total, "train", 0, 100)
    for _ in range(count):
        some = [next(arrays) for _ in range(size)]
        sizes = torch.tensor([len(graph.x) for graph in some])
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        x, y = (torch.cat([torch.from_numpy(getattr(graph, key)) for graph in some]).long() for key in "xy")
        edges = [torch.from_numpy(g.edge_index).long() + int(begin) for g, begin in zip(some, ptr, strict=False)]
        yield x, torch.cat(edges, 1), None, y, ptr


def _molecules(count: int, size: int, generator: torch.Generator) -> Iterator[tuple[Any, ...]]:
    """ZINC's validation graphs where ``GRAPHATTN_DATA`` has them, else random molecules of their size."""
    from graphattn_datasets.paths import data_folder

    folder = data_folder()
    if folder is not None and (folder / "zinc").is_dir():
        from torch_geometric.data import Batch as PygBatch

        from graphattn_datasets import load_dataset

        graphs_of = load_dataset("zinc_12k", split="val")
        for number in range(min(count, len(graphs_of) // size)):
            some = PygBatch.from_data_list([graphs_of[number * size + i] for i in range(size)])
            yield some.x.view(-1), some.edge_index, some.edge_attr, some.y.view(-1), some.ptr
        return
    for number in range(count):
        graph = graphs.molecules(size, number, torch.device("cpu"), smallest=10)
        x = torch.randint(28, (graph.num_tokens,), generator=generator)
        edge_attr = torch.randint(4, (graph.num_edges,), generator=generator)
        yield x, graph.edges, edge_attr, torch.randn(size, generator=generator), graph.ptr
