"""What DGL's attention layers have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.attention import attend, edge_weights, propagate
from graphattn.bridge.dgl.graphs import check_in_degree, node_features, token_graph
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import drop_seed
from graphattn.score import Score

__all__ = ["AttentionConv"]


class AttentionConv(nn.Module):
    """Attention over a graph in DGL's shapes.

    Args:
        in_feats: Features of a node, or of a source and of a target node.
        out_feats: D, features of one head.
        num_heads: H.
        attn_drop: Dropout on the attention weights.
        allow_zero_in_degree: Accept nodes that read nobody.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        in_feats: int | tuple[int, int],
        out_feats: int,
        num_heads: int,
        attn_drop: float,
        allow_zero_in_degree: bool,
        backend: str,
    ) -> None:
        super().__init__()
        if out_feats < 1 or num_heads < 1:
            raise ArgumentError(f"out_feats and num_heads must be positive, got {out_feats} and {num_heads}")
        self.in_feats, self.out_feats, self.num_heads = in_feats, out_feats, num_heads
        self.allow_zero_in_degree, self.backend = allow_zero_in_degree, backend
        self.attn_drop = nn.Dropout(attn_drop)

    @property
    def _in_pair(self) -> tuple[int, int]:
        return (self.in_feats, self.in_feats) if isinstance(self.in_feats, int) else self.in_feats

    def set_allow_zero_in_degree(self, set_value: bool) -> None:
        """Accept nodes without in-edges, or not (``dgl.nn.HeteroGraphConv`` calls this)."""
        self.allow_zero_in_degree = set_value

    def _inputs(self, graph: Any, feat: Any) -> tuple[TokenGraph, Tensor, Tensor | None]:
        tokens = token_graph(graph)
        if not self.allow_zero_in_degree:
            check_in_degree(tokens)
        return tokens, *node_features(graph, tokens, feat)

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.num_heads, self.out_feats))

    def _attend(
        self,
        graph: TokenGraph,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        score: Score,
        edge_weight: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """``[N_t, ..., H, D]``, and ``[E, ..., H, 1]``: the weights as they were applied."""
        q, k, v = (x.movedim(0, -3) for x in (q, k, v))
        if edge_weight is None and not need_weights:
            p, seed = drop_seed(self, self.attn_drop.p, v)
            out = attend(graph, q, k, v, score=score, dropout_p=p, dropout_seed=seed, backend=self.backend)
            assert isinstance(out, Tensor)
            return out.movedim(-3, 0), None
        weights = self.attn_drop(edge_weights(graph, q, k, score=score, backend=self.backend))
        if edge_weight is not None:
            if edge_weight.shape != (graph.num_edges,):
                raise ArgumentError(f"edge_weight must be [{graph.num_edges}], got {list(edge_weight.shape)}")
            weights = weights * edge_weight.unsqueeze(-1)
        out = propagate(graph, weights, v, backend=self.backend)
        return out.movedim(-3, 0), weights.movedim(-2, 0).unsqueeze(-1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_feats}, {self.out_feats}, num_heads={self.num_heads})"
