"""Transforms that experiments need and that are not encodings."""

from __future__ import annotations

import torch
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

__all__ = ["CompleteGraph"]


class CompleteGraph(BaseTransform):
    """Replace the edges of a graph by all ordered pairs of different nodes: the structure is gone.

    The "full graph" of Dwivedi & Bresson, arXiv 2012.09699: no self-loops, and every edge has type 0. Encodings that
    were computed before stay, so apply it after them. For one graph, not for a batch: use it as ``transform``.
    """

    def forward(self, data: Data) -> Data:
        """The graph with ``n (n - 1)`` edges."""
        nodes = data.num_nodes
        target, source = torch.ones(nodes, nodes, dtype=torch.bool).fill_diagonal_(False).nonzero(as_tuple=True)
        data.edge_index = torch.stack([source, target]).to(data.x.device)
        if data.edge_attr is not None:
            shape = (data.edge_index.shape[1], *data.edge_attr.shape[1:])
            data.edge_attr = data.edge_attr.new_zeros(shape)
        return data
