"""Exphormer's expander edges as a PyG transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphattn.encoding._structure import check_count
from graphattn.encoding.transforms import _Transform, token_graph
from graphattn.errors import ArgumentError
from graphattn.graph.exphormer import expander_edges

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["AddExpander"]


class AddExpander(_Transform):
    """Add the edges of an expander over the nodes (:func:`graphattn.graph.expander_edges`), for Exphormer's graph.

    PyG shifts them like ``edge_index`` when it makes a batch.

    Args:
        degree: Of the expander, 2 or more.
        attr_name: Name of the attribute; must hold ``"index"``, by which PyG knows it.
        seed: With a graph's size, it decides the graph's edges.
    """

    def __init__(self, degree: int = 4, attr_name: str = "expander_index", *, seed: int = 0) -> None:
        check_count("degree", degree, minimum=2)
        if "index" not in attr_name:
            raise ArgumentError(f"attr_name must hold 'index', or a batch would not shift the edges, got {attr_name!r}")
        self.degree = degree
        self.attr_name = attr_name
        self.seed = seed

    def forward(self, data: Data) -> Data:
        """``data`` with the edges ``[2, X]``."""
        data[self.attr_name] = expander_edges(token_graph(data, type(self).__name__), self.degree, self.seed)
        return data
