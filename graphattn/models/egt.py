"""The edge-augmented graph transformer: every pair of nodes has a row of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.models.encoders import add_encoding, check_choices, edge_encoder, edge_rows
from graphattn.models.inputs import complete_graphs, local_graph, member_ptr
from graphattn.models.parts import make_mechanism
from graphattn.nn import EGTBlock, Readout, RowEncoder, pool

__all__ = ["EGT"]


class EGT(nn.Module):
    """Edge-augmented graph transformer (Hussain et al., KDD 2022, arXiv 2108.03348): tokens are nodes, all pairs of a
    graph are its edges, and both have rows.

    A pair starts as the embedding of its hop distance; where the data have none
    (:class:`graphattn.encoding.AddHopDistance`), of whether it is an edge. Defaults are the published ones for PATTERN
    and CLUSTER, but for the layers (16). Differences: Laplacian encodings stand where the paper has singular vectors,
    and there are no virtual nodes.

    Args:
        out_channels: Channels of the prediction.
        in_vocab: Number of node types, for ``x`` of integer ids; or one number for each of several id columns.
        in_channels: Node features, for a floating ``x``. Give this or ``in_vocab``.
        width: Channels of a token row.
        edge_width: Channels of a pair's row.
        heads: Attention heads.
        layers: Blocks.
        edge_vocab: Number of edge types, for ``edge_attr`` of integer ids.
        edge_channels: Edge features, for a floating ``edge_attr``.
        max_hops: Hop distances are told apart up to this one; 1: an edge or not.
        pe_dim: Columns of the positional encoding; ``None``: none.
        readout: ``"node"``, or how to pool each graph: ``"mean"``, ``"sum"``, ``"max"``.
        expansion: Of the feed-forward networks.
        dropout: In blocks.
        input_dropout: On the embedded nodes.
        attention_dropout: On the weights, for mechanisms that take it.
        mechanism: ``"egt"``, ``"ssa"`` (around EGT's attention, unless ``mechanism_options`` say otherwise), or any
            name of :func:`graphattn.list_mechanisms` that takes edge rows.
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
        width: int = 64,
        edge_width: int = 8,
        heads: int = 8,
        layers: int = 8,
        edge_vocab: int | list[int] | None = None,
        edge_channels: int | None = None,
        max_hops: int = 1,
        pe_dim: int | None = None,
        readout: str = "node",
        expansion: float = 2.0,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        mechanism: str = "egt",
        mechanism_options: dict[str, Any] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choices(in_vocab, in_channels, readout)
        if max_hops < 1:
            raise ArgumentError(f"max_hops must be 1 or more, got {max_hops}")
        self.readout, self.max_hops = readout, max_hops
        self.embed = RowEncoder(width, in_vocab, in_channels, "x")
        self.embed_pe = nn.Linear(pe_dim, width) if pe_dim else None
        self.embed_pair = nn.Embedding(max_hops + 2, edge_width)
        self.embed_edge = edge_encoder(edge_width, edge_vocab, edge_channels)
        self.input_dropout = nn.Dropout(input_dropout)
        given = dict(mechanism_options or {})
        if mechanism == "ssa":
            given.setdefault("attention", "egt")
        shared = {"attention_dropout": attention_dropout, "backend": backend}
        self.blocks = nn.ModuleList(
            EGTBlock(
                make_mechanism(mechanism, width, heads, edge_width, edge_output=n + 1 < layers, shared=shared, **given),
                width,
                edge_width,
                edge_update=n + 1 < layers,
                expansion=expansion,
                edge_expansion=expansion,
                dropout=dropout,
            )
            for n in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = Readout(width, out_channels)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | TokenGraph,
        edge_attr: Tensor | None = None,
        pe: Tensor | None = None,
        hop_distance: Tensor | None = None,
        batch: Tensor | None = None,
        num_graphs: int | None = None,
        num_pairs: int | None = None,
    ) -> Tensor:
        """Predict.

        Args:
            x: int64 ``[N]`` (or ``[N, columns]``) ids, or floating ``[N, in_channels]``.
            edge_index: int64 ``[2, E]`` sources and targets, or a TokenGraph.
            edge_attr: int64 ``[E]`` (or ``[E, columns]``) ids, or floating ``[E, edge_channels]``.
            pe: ``[N, pe_dim]`` positional encoding.
            hop_distance: int64 ``[P]`` of all pairs of each graph, by target, then source; default: 0 for a node
                itself, 1 for an edge, 2 for others.
            batch: int64 ``[N]`` graph of each node.
            num_graphs: Number of graphs in the batch.
            num_pairs: P, the sum over graphs of the squared number of nodes.

        Returns:
            ``[N, out_channels]`` for the node readout, else ``[num_graphs, out_channels]``.

        Raises:
            ArgumentError: If an input that the model was made for is missing.
        """
        h = self.input_dropout(add_encoding(self.embed(x), self.embed_pe, pe))
        ptr = member_ptr(batch, x.shape[0], num_graphs)
        pairs = complete_graphs(h, ptr, num_pairs)
        edge = self._pairs(pairs, local_graph(edge_index, x, ptr), edge_attr, hop_distance)
        for block in self.blocks:
            h, edge = block(h, pairs, edge)
        h = self.norm(h)
        if self.readout != "node":
            h = pool(h, batch, num_graphs, self.readout)
        return self.head(h)

    def _pairs(self, pairs: TokenGraph, local: TokenGraph, edge_attr: Tensor | None, hops: Tensor | None) -> Tensor:
        """Rows of all pairs ``[P, edge_width]``."""
        source, target = local.edge_index
        ptr = pairs.source_ptr
        token = torch.arange(pairs.num_tokens, device=source.device)
        start = torch.zeros_like(token) if ptr is None else ptr.long()[pairs.source_batch]
        size = torch.full_like(token, pairs.num_tokens)
        if ptr is not None:
            size = ptr.diff().long()[pairs.target_batch]
        first = size.cumsum(0) - size - start  # pair (t, s) is row first[t] + s
        if hops is None:
            hops = torch.full((pairs.num_edges,), 2, device=source.device)
            hops = hops.index_fill(0, first[target] + source, 1).index_fill(0, first + token, 0)
        elif hops.shape != (pairs.num_edges,):
            raise ArgumentError(f"hop_distance must be [{pairs.num_edges}], all pairs, got {list(hops.shape)}")
        rows = self.embed_pair(hops.clamp(max=self.max_hops + 1))
        given = edge_rows(self.embed_edge, edge_attr, source.shape[0])
        return rows if given is None else rows.index_add(0, first[target] + source, given.to(rows.dtype))
