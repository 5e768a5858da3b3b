"""A plain stack of layers: rows of nodes on graphs of any size, whole or sampled."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.models.convs import ConvStep, make_conv
from graphattn.models.encoders import edge_encoder, edge_rows
from graphattn.models.inputs import local_graph
from graphattn.nn import RowEncoder, make_norm

__all__ = ["ConvLayer", "ConvStack"]

RESIDUALS = ("add", "linear", "none")


class ConvLayer(nn.Module):
    """Layer, norm, ReLU, dropout, with a residual connection.

    Args:
        conv: A PyG-shaped layer from ``[N, width]`` to ``[N, width]``.
        width: Channels of a node row.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        dropout: On the output.
        residual: ``"add"``: the input is added to the output; ``"linear"``: a linear map of it to the layer's output,
            before the norm (as in Luo et al., "Classic GNNs are Strong Baselines", arXiv 2406.08993); ``"none"``.
    """

    def __init__(self, conv: nn.Module, width: int, *, norm: str, dropout: float, residual: str) -> None:
        super().__init__()
        if residual not in RESIDUALS:
            raise ArgumentError(f"residual must be one of {RESIDUALS}, got {residual!r}")
        self.step = ConvStep(conv)
        self.skip = nn.Linear(width, width) if residual == "linear" else None
        self.norm = make_norm(norm, width)
        self.dropout = nn.Dropout(dropout)
        self.residual = residual

    def forward(
        self, x: Tensor, graph: Tensor | TokenGraph, edge: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """New rows of ``x [N, width]``, and the edge rows ``[E, width]`` as they are."""
        step, _ = self.step(x, graph, edge)
        if self.skip is not None:
            step = step + self.skip(x)
        step = self.dropout(self.norm(step).relu())
        return (x + step if self.residual == "add" else step), edge


class ConvStack(nn.Module):
    """A linear map, a stack of any PyG-shaped layers, a linear map: ogbn-arxiv, ogbn-products, ogbl-ddi and the like.

    For a neighbourhood that was sampled (``NeighborLoader``) the rows of its seed nodes come first. For link
    prediction, ``out_channels=None`` leaves rows of ``width`` channels to a decoder
    (:class:`graphattn.nn.LinkDecoder`). Edges are checked on the CPU only, so that nothing waits for a device.

    Args:
        out_channels: Channels of the prediction; ``None``: the rows of the last layer.
        in_channels: Node features, for a floating ``x``.
        in_vocab: Number of node types, for ``x`` of integer ids (several columns: one number for each); the number of
            nodes, where ``x`` is each node's own number.
        num_nodes: Number of nodes of the whole graph, each of which gets a learned row beside its features; ``None``:
            none. Give at least one of these three.
        width: Channels between.
        layers: Number of layers.
        heads: For layers that have heads, which are concatenated.
        conv: A name or path of :func:`graphattn.models.convs.make_conv`.
        conv_options: Further arguments of each layer.
        edge_vocab: Number of edge types, for ``edge_attr`` of integer ids (several columns: one number for each).
        edge_channels: Edge features, for a floating ``edge_attr``; needs a layer that takes ``edge_attr``.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        dropout: After each layer.
        input_dropout: On features; on learned rows, where ``x`` is ids.
        attention_dropout: On attention weights, for layers that have them.
        residual: ``"add"``, ``"linear"`` or ``"none"``, see :class:`ConvLayer`.

    Raises:
        ArgumentError: If the arguments contradict each other.
    """

    def __init__(
        self,
        out_channels: int | None = None,
        *,
        in_channels: int | None = None,
        in_vocab: int | list[int] | None = None,
        num_nodes: int | None = None,
        width: int = 256,
        layers: int = 3,
        heads: int = 1,
        conv: str = "transformer",
        conv_options: dict[str, Any] | None = None,
        edge_vocab: int | list[int] | None = None,
        edge_channels: int | None = None,
        norm: str = "batch",
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        residual: str = "add",
    ) -> None:
        super().__init__()
        if in_vocab is not None and in_channels is not None:
            raise ArgumentError(f"give at most one of in_vocab and in_channels, got {in_vocab} and {in_channels}")
        if in_vocab is None and in_channels is None and num_nodes is None:
            raise ArgumentError("give in_channels, in_vocab or num_nodes, got none of them")
        features = in_vocab or in_channels
        self.embed = RowEncoder(width, in_vocab, in_channels, "x", xavier=True) if features else None
        self.nodes = None if num_nodes is None else nn.Embedding(num_nodes, width)
        if self.nodes is not None:
            nn.init.xavier_uniform_(self.nodes.weight)
        self.embed_edge = edge_encoder(width, edge_vocab or None, edge_channels or None)  # 0 features are none
        self.input_dropout = nn.Dropout(input_dropout)
        shared: dict[str, Any] = {
            "heads": heads,
            "edge_dim": None if self.embed_edge is None else width,
            "dropout": attention_dropout,
            "options": conv_options,
        }
        blocks = [
            ConvLayer(make_conv(conv, width, width, **shared), width, norm=norm, dropout=dropout, residual=residual)
            for _ in range(layers)
        ]
        self._reads_graph = any(block.step.reads_graph for block in blocks)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Identity() if out_channels is None else nn.Linear(width, out_channels)

    def forward(
        self,
        x: Tensor | None,
        edge_index: Tensor | TokenGraph,
        edge_attr: Tensor | None = None,
        n_id: Tensor | None = None,
    ) -> Tensor:
        """Predict.

        Args:
            x: Floating ``[N, in_channels]``, or int64 ids ``[N]`` (or ``[N, columns]``); ``None``: learned rows alone.
            edge_index: int64 ``[2, E]`` sources and targets, or a TokenGraph.
            edge_attr: Floating ``[E, edge_channels]`` or int64 ids, for layers with edge features.
            n_id: int64 ``[N]`` the number of each node in the whole graph, for learned rows of a sampled part
                (``NeighborLoader`` gives it).

        Returns:
            ``[N, out_channels]``.

        Raises:
            ArgumentError: If an input that the model was made for is missing.
        """
        h = self.encode_nodes(x, n_id)
        graph: Any = edge_index
        if self._reads_graph:  # sorted once for all layers
            graph = local_graph(edge_index, h, None)
        num_edges = graph.num_edges if isinstance(graph, TokenGraph) else graph.shape[1]
        edge = self.encode_edges(edge_attr, num_edges)
        for block in self.blocks:
            h, edge = block(h, graph, edge)
        return self.head(h)

    def encode_nodes(self, x: Tensor | None = None, n_id: Tensor | None = None) -> Tensor:
        """Rows ``[N, width]`` before the first layer; arguments as of :meth:`forward`."""
        rows = None
        if self.nodes is not None:
            rows = self.nodes.weight if n_id is None else self.nodes(n_id)
        if self.embed is None:
            assert rows is not None
            return rows
        if x is None:
            raise ArgumentError("x is needed by this model and was not given")
        h = self.embed(self.input_dropout(x)) if x.is_floating_point() else self.input_dropout(self.embed(x))
        if rows is None:
            return h
        if rows.shape[0] != h.shape[0]:
            raise ArgumentError(
                f"x must have a row for each of {rows.shape[0]} nodes, got {h.shape[0]}; a part of a graph needs n_id"
            )
        return h + rows

    def encode_edges(self, edge_attr: Tensor | None, num_edges: int) -> Tensor | None:
        """Rows ``[E, width]``, ``None`` for a model without edge rows."""
        return edge_rows(self.embed_edge, edge_attr, num_edges)
