"""Sampled neighbourhoods, compiled by Numba: PyG's loaders do the rest, without pyg-lib or torch-sparse."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput

from graphattn.errors import ArgumentError
from graphattn.training.data.order import EpochSampler
from graphattn_kernels._numba import compiled

__all__ = ["InEdges", "NeighborhoodSampler"]


class InEdges:
    """Edges grouped by the node that reads: those into node ``t`` are ``ptr[t]:ptr[t + 1]``.

    Args:
        edge_index: int64 ``[2, E]``, sources and targets.
        num_nodes: Number of nodes N.

    Attributes:
        ptr: int64 ``[N + 1]``.
        source: Source of each edge in that order, int32 where ids fit.
        edge: Column of ``edge_index`` of each edge in that order.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        source, target = edge_index.cpu()
        order = torch.argsort(target, stable=True)
        counts = torch.bincount(target, minlength=num_nodes)
        self.ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0))).numpy()
        small = torch.int32 if max(num_nodes, edge_index.shape[1]) < 2**31 else torch.int64
        self.source = source[order].to(small).numpy()
        self.edge = order.to(small).numpy()

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.ptr) - 1


class NeighborhoodSampler(BaseSampler):
    """In-neighbours of in-neighbours of seed nodes, for PyG's ``NodeLoader``; PyG's own needs pyg-lib or torch-sparse.

    Hamilton et al., "Inductive Representation Learning on Large Graphs", NeurIPS 2017. The seeds come first. A node
    is expanded in the hop after the one that met it first: ``min(count, degree)`` of its in-edges, without
    replacement. The choice is a function of the seed, the epoch, the batch's seeds and the node, so a resumed run draws
    what an uninterrupted one would have drawn, with any number of workers.

    Args:
        edges: The graph's edges.
        num_neighbors: For each hop the number of in-edges of a node; -1: all.
        seed: Seed of the choice.
        order: Tells the epoch; ``None``: epoch 0.

    Raises:
        ArgumentError: If a count is neither positive nor -1.
    """

    def __init__(
        self, edges: InEdges, num_neighbors: Sequence[int], seed: int = 0, order: EpochSampler | None = None
    ) -> None:
        if not num_neighbors or any(count < 1 and count != -1 for count in num_neighbors):
            raise ArgumentError(f"num_neighbors must be positive counts or -1, one a hop, got {list(num_neighbors)}")
        self.edges = edges
        self.num_neighbors = list(num_neighbors)
        self.seed = seed
        self.order = order
        self._place: np.ndarray | None = None  # local number of each node met, -1 elsewhere; kept between batches

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> SamplerOutput:
        """The neighbourhood of a batch of seeds."""
        seeds, first = np.unique(index.node.cpu().numpy(), return_index=True)
        seeds, first = seeds[np.argsort(first)], np.sort(first)  # once each, in the order given
        ids = None if index.input_id is None else index.input_id[torch.from_numpy(first)]
        node, row, col, edge, node_counts, edge_counts = self.neighborhood(seeds)
        return SamplerOutput(
            node=torch.from_numpy(node),
            row=torch.from_numpy(row),
            col=torch.from_numpy(col),
            edge=torch.from_numpy(edge),
            num_sampled_nodes=node_counts,
            num_sampled_edges=edge_counts,
            metadata=(ids if ids is not None else torch.from_numpy(first), index.time),
        )

    def sample_from_edges(self, index: Any, neg_sampling: Any = None) -> SamplerOutput:
        """Not for edges."""
        raise NotImplementedError("NeighborhoodSampler samples around nodes; for edges use PyG's LinkNeighborLoader")

    def neighborhood(self, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Any, Any]:
        """Nodes (seeds first), source and target numbers among them, edge ids, and counts a hop."""
        if self._place is None:
            self._place = np.full(self.edges.num_nodes, -1, dtype=np.int32)
        epoch = 0 if self.order is None else self.order.epoch
        words = [self.seed & 0xFFFFFFFF, epoch, zlib.crc32(seeds.tobytes())]
        key = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
        nodes = seeds.astype(np.int64)
        self._place[nodes] = np.arange(len(nodes), dtype=np.int32)
        parts, begin, node_counts = [], 0, [len(nodes)]
        for fan in self.num_neighbors:
            frontier = nodes[begin:]
            degrees = self.edges.ptr[frontier + 1] - self.edges.ptr[frontier]
            bound = int((degrees if fan < 0 else np.minimum(degrees, fan)).sum())
            fresh, out = np.empty(bound, np.int64), np.empty((3, bound), np.int64)
            met = _hop(
                self.edges.ptr, self.edges.source, self.edges.edge, frontier, begin, fan, key, self._place, fresh, out
            )
            begin = len(nodes)
            nodes = np.concatenate((nodes, fresh[:met]))
            parts.append(out)
            node_counts.append(met)
        self._place[nodes] = -1
        row, col, edge = np.concatenate(parts, axis=1)
        return nodes, row, col, edge, node_counts, [part.shape[1] for part in parts]


_STEP, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@compiled(fast=False)
def _hop(ptr, source, edge, frontier, begin, fan, key, place, fresh, out):  # type: ignore[no-untyped-def]
    """Edges of one hop into ``out`` (source and target numbers, edge ids), new nodes into ``fresh``; how many."""
    met, at = 0, 0
    numbered = begin + len(frontier)
    chosen = np.empty(max(fan, 1), np.int64)
    for i in range(len(frontier)):
        node = frontier[i]
        low, degree = ptr[node], ptr[node + 1] - ptr[node]
        every = fan < 0 or degree <= fan
        # SplitMix64, started anew for each node (Steele et al., OOPSLA 2014).
        state = key ^ (np.uint64(node) * _STEP)
        for n in range(degree if every else fan):
            pick: Any = n
            if not every:  # Floyd's sampling without replacement (Bentley & Floyd, CACM 1987)
                top = degree - fan + n
                state = state + _STEP
                word = (state ^ (state >> np.uint64(30))) * _MIX1
                word = (word ^ (word >> np.uint64(27))) * _MIX2
                word = word ^ (word >> np.uint64(31))
                pick = np.int64(word % np.uint64(top + 1))
                for m in range(n):
                    if chosen[m] == pick:
                        pick = top
                        break
                chosen[n] = pick
            other = source[low + pick]
            if place[other] < 0:
                place[other] = numbered + met
                fresh[met] = other
                met += 1
            out[0, at], out[1, at], out[2, at] = place[other], begin + i, edge[low + pick]
            at += 1
    return met
