"""Two attention layers for a citation graph: a model of one's own, found by `graphattn fit` beside the config."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from graphattn import TokenGraph
from graphattn.conv import GraphTransformerConv


class AttentionNet(nn.Module):
    """The shape and the dropouts of GAT (Velickovic et al., "Graph Attention Networks", 2018, section 3.3) with the
    graph transformer's attention in place of GAT's.

    Args:
        in_channels: Node features.
        out_channels: Classes.
        hidden_channels: Channels of each head of the first layer.
        heads: Heads of the first layer.
        dropout: On features and on attention weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int = 8, heads: int = 8, dropout: float = 0.6
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = GraphTransformerConv(in_channels, hidden_channels, heads, dropout=dropout, bias=True)
        self.second = GraphTransformerConv(
            hidden_channels * heads, out_channels, concat=False, dropout=dropout, bias=True
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``x [N, in_channels]`` and ``edge_index [2, E]`` to ``[N, out_channels]``."""
        graph = TokenGraph.from_edge_index(edge_index, x.shape[0]).with_self_loops()
        x = F.dropout(x, self.dropout, self.training)
        x = F.elu(self.first(x, graph))
        x = F.dropout(x, self.dropout, self.training)
        return self.second(x, graph)
