"""Networks with a local and a global part in each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.check import check_ptr
from graphattn.graph.csr import batch_vector
from graphattn.models.encoders import check_choices, edge_encoder, edge_rows
from graphattn.models.inputs import complete_graphs, local_graph, member_ptr
from graphattn.models.parts import ExphormerTokens, make_local, make_mechanism
from graphattn.nn import GPSBlock, NodeEncoder, Readout, VirtualNode, pool

__all__ = ["GPS", "gps_molhiv", "gps_zinc"]

ATOMS, BONDS = [119, 5, 12, 12, 10, 6, 6, 2, 2], [5, 6, 2]  # columns of OGB's molecules, ogb 1.3.6
GRAPHS = ("complete", "exphormer", "edges")


class GPS(nn.Module):
    """The general, powerful, scalable graph transformer (Rampášek et al., arXiv 2205.12454): a local layer on the edges
    beside a mechanism on another graph of the same nodes.

    Encodings are embedded and set beside the embedded features; ``width`` is the sum. Nothing in :meth:`forward` waits
    for the device where ``num_graphs`` and ``num_pairs`` are given (for Exphormer's graph, ``expander_index``); edges
    are then checked on the CPU only.

    Args:
        out_channels: Channels of the prediction.
        in_vocab: Number of node types, for ``x`` of integer ids; or one number for each of several id columns (OGB's
            atoms: ``[119, 5, 12, 12, 10, 6, 6, 2, 2]``).
        in_channels: Node features, for a floating ``x``. Give this or ``in_vocab``.
        width: Channels of a token row.
        heads: Attention heads.
        layers: Blocks.
        edge_vocab: Number of edge types, for ``edge_attr`` of integer ids (OGB's bonds: ``[5, 6, 2]``).
        edge_channels: Edge features, for a floating ``edge_attr``.
        rwse_dim: Columns of the random walk encoding ``rwse``; ``None``: none.
        rwse_width: Channels it is embedded to.
        rwse_norm: ``"none"``, or ``"batch"`` as published, which small sets do not bear
            (:class:`graphattn.nn.WalkEncoder`).
        pe_dim: Columns of the Laplacian encoding ``pe``; ``None``: none.
        pe_width: Channels it is embedded to.
        pe_encoder: ``"linear"`` (flip signs while training, :class:`graphattn.encoding.SignFlip`), or
            ``"sign_invariant"`` (:class:`graphattn.nn.LaplacianEncoder`, which reads ``pe_eigenvalues`` where given).
        local: The local layer: ``"gine"``, a mechanism (``"gated_gcn"``, ...), a name of
            :data:`graphattn.models.convs.CONVS` or any PyG layer as ``"module:Class"``; ``None``: none.
        local_options: Further arguments of the local layer.
        attention: The mechanism of the global part; ``None``: none.
        attention_options: Further arguments of the mechanism.
        attention_on: What the mechanism runs on: ``"complete"``, ``"edges"``, or ``"exphormer"``: the edges, an
            expander and hubs, each kind with learned edge rows (arXiv 2303.06147).
        expander_degree: Of Exphormer's graph, where ``expander_index`` is not given.
        hubs: Of Exphormer's graph, 1 or more.
        virtual_node: A row for each graph, which its nodes read and write between blocks.
        readout: ``"node"``, or how to pool each graph: ``"mean"``, ``"sum"``, ``"max"``.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        dropout: In blocks.
        input_dropout: On the embedded input.
        attention_dropout: On the weights of the global mechanism.
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
        width: int = 64,
        heads: int = 4,
        layers: int = 10,
        edge_vocab: int | list[int] | None = None,
        edge_channels: int | None = None,
        rwse_dim: int | None = None,
        rwse_width: int = 16,
        rwse_norm: str = "none",
        pe_dim: int | None = None,
        pe_width: int = 16,
        pe_encoder: str = "linear",
        local: str | None = "gated_gcn",
        local_options: dict[str, Any] | None = None,
        attention: str | None = "multihead",
        attention_options: dict[str, Any] | None = None,
        attention_on: str = "complete",
        expander_degree: int = 4,
        hubs: int = 1,
        virtual_node: bool = False,
        readout: str = "node",
        norm: str = "batch",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choices(in_vocab, in_channels, readout)
        if attention_on not in GRAPHS:
            raise ArgumentError(f"attention_on must be one of {GRAPHS}, got {attention_on!r}")
        wide = attention_on == "exphormer"
        if wide and (virtual_node or hubs < 1):
            raise ArgumentError(
                f"Exphormer's graph has hubs, 1 or more, and no virtual node; got hubs={hubs}, {virtual_node=}"
            )
        self.readout, self.attention_on = readout, attention_on
        self.embed = NodeEncoder(
            width,
            in_vocab,
            in_channels,
            rwse_dim=rwse_dim,
            rwse_width=rwse_width,
            rwse_norm=rwse_norm,
            pe_dim=pe_dim,
            pe_width=pe_width,
            pe_encoder=pe_encoder,
        )
        self.embed_edge = edge_encoder(width, edge_vocab, edge_channels, xavier=True)
        edges = self.embed_edge is not None
        self.input_dropout = nn.Dropout(input_dropout)
        self.exphormer = ExphormerTokens(width, hubs, expander_degree) if wide else None
        self.virtual_row = nn.Parameter(torch.zeros(1, width)) if virtual_node else None
        self.virtual = nn.ModuleList(VirtualNode(width, dropout) for _ in range(layers - 1 if virtual_node else 0))
        self.attention_edges = attention is not None and (wide or (attention_on == "edges" and edges))

        def block(last: bool) -> GPSBlock:
            gated = local == "gated_gcn"
            update = edges and gated and not last  # nobody reads the edge rows of the last block
            options = dict(local_options or {})
            part = make_local(local, width, heads, edges=edges, edge_output=update, backend=backend, options=options)
            mechanism = None
            if attention is not None:
                options = {"attention_dropout": attention_dropout, "backend": backend, **(attention_options or {})}
                edge_width = width if self.attention_edges else None
                mechanism = make_mechanism(attention, width, heads, edge_width, edge_output=False, **options)
            return GPSBlock(width, part, mechanism, norm=norm, dropout=dropout, gated=gated, edge_output=update)

        self.blocks = nn.ModuleList(block(n == layers - 1) for n in range(layers))
        self.head = Readout(width, out_channels)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | TokenGraph,
        edge_attr: Tensor | None = None,
        rwse: Tensor | None = None,
        pe: Tensor | None = None,
        pe_eigenvalues: Tensor | None = None,
        expander_index: Tensor | None = None,
        batch: Tensor | None = None,
        ptr: Tensor | None = None,
        num_graphs: int | None = None,
        num_pairs: int | None = None,
    ) -> Tensor:
        """Predict.

        Args:
            x: int64 ``[N]`` (or ``[N, columns]``) ids, or floating ``[N, in_channels]``.
            edge_index: int64 ``[2, E]`` sources and targets, or a TokenGraph.
            edge_attr: int64 ``[E]`` (or ``[E, columns]``) ids, or floating ``[E, edge_channels]``.
            rwse: ``[N, rwse_dim]`` random walk encoding.
            pe: ``[N, pe_dim]`` Laplacian encoding.
            pe_eigenvalues: ``[N, pe_dim]`` its eigenvalues.
            expander_index: int64 ``[2, X]`` expander edges (:class:`graphattn.encoding.AddExpander`).
            batch: int64 ``[N]`` graph of each node, ascending; ``None``: all nodes are one graph.
            ptr: int64 ``[B + 1]`` first node of each graph; default: from ``batch``.
            num_graphs: Number of graphs in the batch.
            num_pairs: Sum over graphs of the squared number of nodes; default: asked of the device.

        Returns:
            ``[N, out_channels]`` for the node readout, else ``[num_graphs, out_channels]``.

        Raises:
            ArgumentError: If an input that the model was made for is missing.
        """
        if ptr is None:
            ptr = member_ptr(batch, x.shape[0], num_graphs)
        elif not ptr.is_cuda:
            check_ptr("ptr", ptr, x.shape[0], x.device)
        if batch is None and ptr is not None:
            batch = batch_vector(ptr, x.shape[0], x.device)
        num_graphs = 1 if ptr is None else ptr.shape[0] - 1
        graph = local_graph(edge_index, x, ptr)
        h = self.input_dropout(self.embed(x, rwse, pe, pe_eigenvalues))
        edge, placed = edge_rows(self.embed_edge, edge_attr, graph.num_edges), None
        wide, wide_edge = graph, edge
        if self.exphormer is not None:
            h, graph, wide_edge, placed = self.exphormer(h, graph, edge, expander_index)
            wide = placed.graph
        elif self.attention_on == "complete":
            wide = complete_graphs(x, ptr, num_pairs)
        if not self.attention_edges:
            wide_edge = None

        row = None if self.virtual_row is None else self.virtual_row.expand(num_graphs, -1)
        for n, block in enumerate(self.blocks):
            h = h if row is None else VirtualNode.read(h, row, batch)
            h, edge = block(h, graph, edge, wide, wide_edge)
            if row is not None and n < len(self.virtual):
                row = self.virtual[n](row, h, batch)
        if placed is not None:
            h = placed.nodes(h)
        return self.head(h if self.readout == "node" else pool(h, batch, num_graphs, self.readout))


def gps_molhiv(**options: Any) -> GPS:
    """The published ogbg-molhiv network: 10 layers, width 64, 4 heads, GatedGCN beside full attention, 16 steps of
    random walks, mean readout. With the 4 chiralities of that time it has 558,497 parameters; the published 558,625
    count the edge norm of the last layer, which nothing reads."""
    defaults: dict[str, Any] = {"in_vocab": ATOMS, "edge_vocab": BONDS, "rwse_dim": 16, "readout": "mean"}
    defaults |= {"dropout": 0.05, "attention_dropout": 0.5, "rwse_norm": "batch"}
    return GPS(1, **{**defaults, **options})


def gps_zinc(**options: Any) -> GPS:
    """The published ZINC network: 10 layers, width 64, 4 heads, GINE beside full attention, 20 steps of random walks
    embedded to 28 channels; 423,717 parameters."""
    defaults: dict[str, Any] = {"in_vocab": 28, "edge_vocab": 4, "local": "gine", "rwse_dim": 20, "rwse_width": 28}
    defaults |= {"attention_dropout": 0.5, "readout": "sum", "rwse_norm": "batch"}
    return GPS(1, **{**defaults, **options})
