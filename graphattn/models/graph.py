"""Networks for graphs: node and graph prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.models.encoders import add_encoding, check_choices, edge_encoder, edge_rows
from graphattn.models.inputs import batch_graph, member_ptr
from graphattn.models.parts import make_mechanism
from graphattn.nn import Block, Readout, RowEncoder, pool
from graphattn.nn.encoders import needed

__all__ = [
    "GraphTransformer",
    "graph_transformer_cluster",
    "graph_transformer_pattern",
    "graph_transformer_zinc",
]


class GraphTransformer(nn.Module):
    """The graph transformer of Dwivedi & Bresson (2020), with any mechanism of the library in its blocks.

    Tokens are nodes. A positional encoding is embedded linearly and added once, at the input.

    Args:
        out_channels: Channels of the prediction.
        in_vocab: Number of node types, for ``x`` of integer ids; or one number for each of several id columns.
        in_channels: Node features, for a floating ``x``. Give this or ``in_vocab``.
        width: Channels of a token row.
        heads: Attention heads.
        layers: Blocks.
        edge_vocab: Number of edge types, for ``edge_attr`` of integer ids (several columns as with ``in_vocab``).
        edge_channels: Edge features, for a floating ``edge_attr``.
        constant_edges: Give every edge the same learned row, as the paper does for edge models without edge features.
        pe_dim: Columns of the positional encoding; ``None``: none.
        wl_vocab: Number of Weisfeiler-Lehman roles; ``None``: none.
        readout: ``"node"``, or how to pool each graph: ``"mean"``, ``"sum"``, ``"max"``.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        residual: Residual connections.
        dropout: In blocks (published: 0).
        input_dropout: On the embedded input (published: 0).
        attention_dropout: On the weights, for mechanisms that take it.
        clamp: Bound on the score, for mechanisms that take it.
        mechanism: Name of the mechanism in each block.
        mechanism_options: Further arguments of the mechanism.
        backend: See :func:`graphattn.attend`.

    Raises:
        ArgumentError: If the arguments contradict each other.
    """

    def __init__(
        self,
        out_channels: int,
        *,
        in_vocab: int | list[int] | None = None,
        in_channels: int | None = None,
        width: int = 80,
        heads: int = 8,
        layers: int = 10,
        edge_vocab: int | list[int] | None = None,
        edge_channels: int | None = None,
        constant_edges: bool = False,
        pe_dim: int | None = None,
        wl_vocab: int | None = None,
        readout: str = "node",
        norm: str = "batch",
        residual: bool = True,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        clamp: float | None = 5.0,
        mechanism: str = "graph_transformer",
        mechanism_options: dict[str, Any] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choices(in_vocab, in_channels, readout)
        if constant_edges and (edge_vocab is not None or edge_channels is not None):
            raise ArgumentError("give at most one of edge_vocab, edge_channels and constant_edges")
        self.readout = readout
        self.embed = RowEncoder(width, in_vocab, in_channels, "x")
        self.embed_edge = edge_encoder(width, edge_vocab, 1 if constant_edges else edge_channels)
        edges = self.embed_edge is not None
        self.constant_edges = constant_edges
        self.embed_pe = nn.Linear(pe_dim, width) if pe_dim else None
        self.embed_wl = nn.Embedding(wl_vocab, width) if wl_vocab else None
        self.input_dropout = nn.Dropout(input_dropout)
        shared: dict[str, Any] = {
            "clamp": clamp,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "backend": backend,
        }
        options: dict[str, Any] = {"edge_output": True, "shared": shared, **(mechanism_options or {})}
        self.blocks = nn.ModuleList(
            Block(
                make_mechanism(mechanism, width, heads, width if edges else None, **options),
                width,
                edges=edges,
                norm=norm,
                residual=residual,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        if layers and edges:
            last: Any = self.blocks[-1]
            last.freeze_edge_output()
        self.head = Readout(width, out_channels)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | TokenGraph,
        edge_attr: Tensor | None = None,
        pe: Tensor | None = None,
        wl: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> Tensor:
        """Predict.

        Args:
            x: int64 ``[N]`` (or ``[N, columns]``) ids, or floating ``[N, in_channels]``.
            edge_index: int64 ``[2, E]`` sources and targets, or a TokenGraph.
            edge_attr: int64 ``[E]`` (or ``[E, columns]``) ids, or floating ``[E, edge_channels]``.
            pe: ``[N, pe_dim]`` positional encoding.
            wl: int64 ``[N]`` Weisfeiler-Lehman roles.
            batch: int64 ``[N]`` graph of each node, ascending; ``None``: all nodes are one graph.
            num_graphs: Number of graphs in the batch.

        Returns:
            ``[N, out_channels]`` for the node readout, else ``[num_graphs, out_channels]``.

        Raises:
            ArgumentError: If an input that the model was made for is missing.
        """
        # Members, for mechanisms that look at a whole graph: not at the whole batch.
        graph = batch_graph(edge_index, x, member_ptr(batch, x.shape[0], num_graphs))
        h, edge = self.encode_nodes(x, pe, wl), self.encode_edges(edge_attr, graph.num_edges)
        for block in self.blocks:
            h, edge = block(h, graph, edge)
        if self.readout != "node":
            h = pool(h, batch, num_graphs, self.readout)
        return self.head(h)

    def encode_nodes(self, x: Tensor, pe: Tensor | None = None, wl: Tensor | None = None) -> Tensor:
        """Rows ``[N, width]`` before the first block; arguments as :meth:`forward`."""
        h = add_encoding(self.embed(x), self.embed_pe, pe)
        if self.embed_wl is not None:
            h = h + self.embed_wl(needed("wl", wl, x.shape[0]))
        return self.input_dropout(h)

    def encode_edges(self, edge_attr: Tensor | None, num_edges: int) -> Tensor | None:
        """Rows ``[E, width]`` before the first block, ``None`` for a model without edge rows."""
        if self.constant_edges and self.embed_edge is not None:
            weight = next(self.embed_edge.parameters())
            edge_attr = torch.ones(num_edges, 1, device=weight.device, dtype=weight.dtype)
        return edge_rows(self.embed_edge, edge_attr, num_edges)


def graph_transformer_zinc(**options: Any) -> GraphTransformer:
    """The published ZINC network: 10 layers, 8 heads, width 64, edge rows, mean readout; 588,929 parameters with
    ``pe_dim=8``."""
    defaults: dict[str, Any] = {"width": 64, "in_vocab": 28, "edge_vocab": 4, "readout": "mean", "pe_dim": 8}
    return GraphTransformer(1, **{**defaults, **options})


def graph_transformer_pattern(**options: Any) -> GraphTransformer:
    """The published PATTERN network: 10 layers, 8 heads, width 80; 522,982 parameters with ``pe_dim=2``."""
    return GraphTransformer(2, **{"in_vocab": 3, "pe_dim": 2, **options})


def graph_transformer_cluster(**options: Any) -> GraphTransformer:
    """The published CLUSTER network: 10 layers, 8 heads, width 80; 524,026 parameters with ``pe_dim=10``."""
    return GraphTransformer(6, **{"in_vocab": 7, "pe_dim": 10, **options})
