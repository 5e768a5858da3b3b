"""PyG-shaped layers by name, with one set of arguments for all."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

__all__ = ["CONVS", "ConvStep", "make_conv"]

CONVS = {
    "gat": "graphattn.conv:GATConv",
    "gatv2": "graphattn.conv:GATv2Conv",
    "gcn": "torch_geometric.nn:GCNConv",
    "gine": "torch_geometric.nn:GINEConv",
    "graph_transformer": "graphattn.conv:GraphTransformerConv",
    "res_gated": "torch_geometric.nn:ResGatedGraphConv",
    "sage": "torch_geometric.nn:SAGEConv",
    "transformer": "graphattn.conv:TransformerConv",
}
"""Short names; any other layer is ``"module:Class"``."""


def make_conv(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    heads: int = 1,
    edge_dim: int | None = None,
    dropout: float = 0.0,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A PyG-shaped layer ``conv(x, edge_index[, edge_attr])`` from ``[N, in_channels]`` to ``[N, out_channels]``.

    Args:
        name: A name in :data:`CONVS`, or ``"module:Class"`` of a layer that takes ``(in_channels, out_channels)``, or a
            network as its argument ``nn`` (GIN and its kin get two linear layers).
        in_channels: Features of a node.
        out_channels: Features of a new node, all heads together.
        heads: For layers that have heads, which are concatenated.
        edge_dim: Features of an edge, for layers that take them; ``None``: none.
        dropout: On attention weights, for layers that have them.
        options: Further arguments of the layer.

    Raises:
        ArgumentError: If there is no such layer, or it does not take these arguments.
    """
    make = _find(name)
    known = inspect.signature(make).parameters
    arguments: dict[str, Any] = {}
    if "heads" in known:
        if out_channels % heads:
            raise ArgumentError(f"out_channels must be a multiple of heads, got {out_channels} and {heads}")
        arguments["heads"] = heads
    if "edge_dim" in known and edge_dim is not None:
        arguments["edge_dim"] = edge_dim
    if "dropout" in known:
        arguments["dropout"] = dropout
    arguments.update(options or {})
    try:
        if "nn" in known:
            mlp = nn.Sequential(nn.Linear(in_channels, out_channels), nn.ReLU(), nn.Linear(out_channels, out_channels))
            return make(mlp, **arguments)
        return make(in_channels, out_channels // arguments.get("heads", 1), **arguments)
    except TypeError as error:
        raise ArgumentError(f"layer {name!r} cannot be made with {arguments}: {error}") from error


class ConvStep(nn.Module):
    """A PyG-shaped layer that is called with a token graph and edge rows, whether it knows them or not.

    Args:
        conv: The layer.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        from graphattn.conv._base import AttentionConv

        self.conv = conv
        self.reads_graph = isinstance(conv, AttentionConv)
        self._reads_edges = "edge_attr" in inspect.signature(conv.forward).parameters

    def forward(self, x: Tensor, graph: Any, edge: Tensor | None = None) -> tuple[Tensor, None]:
        """New rows of ``x [N, in_channels]``, on a TokenGraph or an ``edge_index``; there are no new edge rows."""
        edges = graph.edge_index if isinstance(graph, TokenGraph) and not self.reads_graph else graph
        if edge is not None and self._reads_edges:
            return self.conv(x, edges, edge_attr=edge), None
        return self.conv(x, edges), None


def _find(name: str) -> Any:
    path = CONVS.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ArgumentError(f"conv must be one of {sorted(CONVS)} or 'module:Class', got {name!r}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"conv {name!r} cannot be imported: {error}") from error
