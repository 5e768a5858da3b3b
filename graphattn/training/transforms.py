"""Transforms that training needs and that are not encodings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from graphattn.errors import ArgumentError

__all__ = ["CompleteGraph", "FeatureDropout", "NodeIds"]


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


class FeatureDropout(BaseTransform):
    """Dropout on the input features ``x``, which must be floating: for ``train_transform``, on bags of words say.

    Args:
        p: Share of entries set to 0; the others are scaled by ``1 / (1 - p)``.

    Raises:
        ArgumentError: If ``p`` is not in [0, 1).
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ArgumentError(f"p must lie in [0, 1), got {p}")
        self.p = p

    def forward(self, data: Data) -> Data:
        """The data with new zeros in ``x``."""
        data.x = F.dropout(data.x, self.p)
        return data


class NodeIds(BaseTransform):
    """Let ``x`` be the number of each node, int64 ``[N]``: a model with ``in_vocab=N`` learns a row for every node.

    For one graph without features, ogbl-ddi say; learned rows mean nothing in another graph.
    """

    def forward(self, data: Data) -> Data:
        """The data with a new ``x``."""
        data.x = torch.arange(data.num_nodes, device=data.edge_index.device)
        return data
