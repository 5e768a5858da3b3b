"""DGL's BiasedMHA and GraphormerLayer on the edges of a graph, instead of on padded pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.attention import attend
from graphattn.bridge.dgl.graphs import node_features, token_graph
from graphattn.errors import ArgumentError
from graphattn.kernels import sddmm
from graphattn.mechanisms.base import drop_seed, head_width

__all__ = ["BiasedMHA", "GraphormerLayer"]


class BiasedMHA(nn.Module):
    """``dgl.nn.BiasedMHA``: multi-head attention with a bias for each pair, where the pairs are the edges of a graph.

    .. math::
        y_t = O \\sum_{e = (s \\to t)} \\operatorname{softmax}_e\\big(q_t^\\top k_s / \\sqrt{d} \\circ b_e\\big)\\, v_s

    (Ying et al., "Do Transformers Really Perform Bad for Graph Representation?", NeurIPS 2021, eq. 6.) Parameter names,
    state dicts and initial values (for one seed) are those of DGL 1.1.3, and so are the numbers where the edges are
    the pairs that DGL's ``attn_mask`` leaves visible. Attention among all nodes of each graph of a batch is
    ``graphattn.patterns.blocks(ptr)``, without padding.

    Args:
        feat_size: Features of a node.
        num_heads: Heads; must divide ``feat_size``.
        bias: Give the projections a bias.
        attn_bias_type: :math:`\\circ`: ``"add"`` or ``"mul"``.
        attn_drop: Dropout on the attention weights.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        feat_size: int,
        num_heads: int,
        bias: bool = True,
        attn_bias_type: str = "add",
        attn_drop: float = 0.1,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if attn_bias_type not in ("add", "mul"):
            raise ArgumentError(f"attn_bias_type must be 'add' or 'mul', got {attn_bias_type!r}")
        self.feat_size, self.num_heads = feat_size, num_heads
        self.head_dim = head_width(feat_size, num_heads)
        self.attn_bias_type, self.attn_drop, self.backend = attn_bias_type, attn_drop, backend
        self.q_proj = nn.Linear(feat_size, feat_size, bias=bias)
        self.k_proj = nn.Linear(feat_size, feat_size, bias=bias)
        self.v_proj = nn.Linear(feat_size, feat_size, bias=bias)
        self.out_proj = nn.Linear(feat_size, feat_size, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as DGL does."""
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(linear.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, graph: Any, feat: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        """Attention of every node over the sources of its in-edges.

        Args:
            graph: A square ``DGLGraph`` or :class:`~graphattn.TokenGraph`.
            feat: ``[N, feat_size]``.
            attn_bias: ``[E]`` or ``[E, H]`` in the order of DGL's edge ids.

        Returns:
            ``[N, feat_size]``; for a node without in-edges, the projection of 0.

        Raises:
            ArgumentError: If shapes do not fit.
        """
        tokens = token_graph(graph)
        rows, _ = node_features(graph, tokens, feat)
        if not tokens.is_square or rows.dim() != 2 or rows.shape[1] != self.feat_size:
            raise ArgumentError(
                f"feat must be [N, {self.feat_size}] for a square graph, got {list(rows.shape)} for "
                f"{tokens.num_sources} sources and {tokens.num_targets} targets"
            )
        q, k, v = (
            project(rows).unflatten(-1, (self.num_heads, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        p, seed = drop_seed(self, self.attn_drop, v)
        drop = {"dropout_p": p, "dropout_seed": seed, "backend": self.backend}
        if attn_bias is None or self.attn_bias_type == "add":
            out = attend(tokens, q, k, v, edge_bias=attn_bias, **drop)  # type: ignore[arg-type]
        else:
            if attn_bias.shape not in ((tokens.num_edges,), (tokens.num_edges, self.num_heads)):
                raise ArgumentError(
                    f"attn_bias must be [{tokens.num_edges}] or [{tokens.num_edges}, {self.num_heads}], "
                    f"got {list(attn_bias.shape)}"
                )
            scores = sddmm(tokens.structure, q * self.head_dim**-0.5, k, backend=self.backend)
            scores = scores * (attn_bias.unsqueeze(-1) if attn_bias.dim() == 1 else attn_bias)
            out = attend(tokens, None, None, v, score=scores, **drop)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        return self.out_proj(out.flatten(-2))

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"feat_size={self.feat_size}, num_heads={self.num_heads}, attn_bias_type={self.attn_bias_type!r}"


class GraphormerLayer(nn.Module):
    """``dgl.nn.GraphormerLayer``: :class:`BiasedMHA`, a feed-forward network, residuals and norms.

    Parameter names and state dicts are those of DGL 1.1.3.

    Args:
        feat_size: Features of a node.
        hidden_size: Hidden features of the feed-forward network.
        num_heads: Heads; must divide ``feat_size``.
        attn_bias_type: See :class:`BiasedMHA`.
        norm_first: Normalise before attention and feed-forward network, rather than after.
        dropout: On the output of both.
        attn_dropout: On the attention weights.
        activation: A module; default: ``ReLU``.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        feat_size: int,
        hidden_size: int,
        num_heads: int,
        attn_bias_type: str = "add",
        norm_first: bool = False,
        dropout: float = 0.1,
        attn_dropout: float = 0.1,
        activation: nn.Module | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attn = BiasedMHA(
            feat_size, num_heads, attn_bias_type=attn_bias_type, attn_drop=attn_dropout, backend=backend
        )
        self.ffn = nn.Sequential(
            nn.Linear(feat_size, hidden_size),
            nn.ReLU() if activation is None else activation,
            nn.Dropout(dropout),
            nn.Linear(hidden_size, feat_size),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)
        self.attn_layer_norm = nn.LayerNorm(feat_size)
        self.ffn_layer_norm = nn.LayerNorm(feat_size)

    def forward(self, graph: Any, nfeat: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        """One layer.

        Args:
            graph: A square ``DGLGraph`` or :class:`~graphattn.TokenGraph`.
            nfeat: ``[N, feat_size]``.
            attn_bias: ``[E]`` or ``[E, H]``, see :meth:`BiasedMHA.forward`.

        Returns:
            ``[N, feat_size]``.
        """
        attended = self.attn_layer_norm(nfeat) if self.norm_first else nfeat
        nfeat = nfeat + self.dropout(self.attn(graph, attended, attn_bias))
        if not self.norm_first:
            nfeat = self.attn_layer_norm(nfeat)
        nfeat = nfeat + self.ffn(self.ffn_layer_norm(nfeat) if self.norm_first else nfeat)
        return nfeat if self.norm_first else self.ffn_layer_norm(nfeat)
