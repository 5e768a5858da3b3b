"""DGL's GATConv and GATv2Conv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.bridge.dgl.base import AttentionConv
from graphattn.score import GATScore, GATv2Score

__all__ = ["GATConv", "GATv2Conv"]

_GAIN = nn.init.calculate_gain("relu")


class GATConv(AttentionConv):
    """``dgl.nn.GATConv``: graph attention (Veličković et al., ICLR 2018, eqs. 1-4).

    .. math::
        y_t = \\sum_{e = (s \\to t)} \\operatorname{softmax}_e\\big(\\operatorname{LeakyReLU}(l^\\top W x_s +
        r^\\top W x_t)\\big)\\, w_e W x_s

    Numbers, parameter names, state dicts and initial values (for one seed) are those of DGL 1.1.3. Dropout draws from
    another stream of random numbers.

    Args:
        in_feats: Features of a node, or of a source and of a target node.
        out_feats: D, features of one head.
        num_heads: H.
        feat_drop: Dropout on the features.
        attn_drop: Dropout on the attention weights.
        negative_slope: Of the LeakyReLU.
        residual: Add the target's features, projected where their number is not H * D.
        activation: Called on the output.
        allow_zero_in_degree: Accept nodes that read nobody: attention gives them exactly 0.
        bias: Learn a bias.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        in_feats: int | tuple[int, int],
        out_feats: int,
        num_heads: int,
        feat_drop: float = 0.0,
        attn_drop: float = 0.0,
        negative_slope: float = 0.2,
        residual: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
        allow_zero_in_degree: bool = False,
        bias: bool = True,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(in_feats, out_feats, num_heads, attn_drop, allow_zero_in_degree, backend)
        (source, target), width = self._in_pair, num_heads * out_feats
        if isinstance(in_feats, int):
            self.fc = nn.Linear(source, width, bias=False)
        else:
            self.fc_src = nn.Linear(source, width, bias=False)
            self.fc_dst = nn.Linear(target, width, bias=False)
        self.attn_l = nn.Parameter(torch.empty(1, num_heads, out_feats))
        self.attn_r = nn.Parameter(torch.empty(1, num_heads, out_feats))
        self.feat_drop = nn.Dropout(feat_drop)
        self.score = GATScore(negative_slope)
        self.res_fc: nn.Module | None = None
        if residual:
            self.res_fc = nn.Identity() if target == width else nn.Linear(target, width, bias=bias)
        # A projected residual has a bias of its own.
        own = bias and not isinstance(self.res_fc, nn.Linear)
        self.bias: nn.Parameter | None = nn.Parameter(torch.empty(width)) if own else None
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew, as DGL does."""
        for name in ("fc", "fc_src", "fc_dst"):
            if hasattr(self, name):
                nn.init.xavier_normal_(getattr(self, name).weight, gain=_GAIN)
        nn.init.xavier_normal_(self.attn_l, gain=_GAIN)
        nn.init.xavier_normal_(self.attn_r, gain=_GAIN)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        _reset_residual(self.res_fc)

    def forward(
        self, graph: Any, feat: Any, edge_weight: Tensor | None = None, get_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of every target node over the sources of its in-edges.

        Args:
            graph: ``DGLGraph`` (bipartite, block, batch), or a :class:`~graphattn.TokenGraph`.
            feat: ``[N, ..., F]`` node features, or a pair: sources ``[N_s, ..., F_s]`` and targets
                ``[N_t, ..., F_t]``. One tensor for a block is that of its sources, the targets first.
            edge_weight: ``[E]``, multiplied with the weights after the softmax.
            get_attention: Return the weights, too.

        Returns:
            ``[N_t, ..., H, D]``. With weights, ``(out, weights [E, ..., H, 1])`` in the order of DGL's edge ids, after
            dropout and ``edge_weight``, as DGL returns them.

        Raises:
            ArgumentError: If shapes do not fit, or a node has no in-edge and that was not allowed; the latter is a
                ``DGLError``, too.
            ArgumentTypeError: If types or dtypes do not fit.
        """
        tokens, h_source, h_target = self._inputs(graph, feat)
        first = self.fc if isinstance(self.in_feats, int) else self.fc_src
        h_source = self.feat_drop(h_source)
        source = self._split(first(h_source))
        if h_target is None:
            h_target, target = h_source[: tokens.num_targets], source[: tokens.num_targets]
        else:
            h_target = self.feat_drop(h_target)
            target = self._split((self.fc if isinstance(self.in_feats, int) else self.fc_dst)(h_target))
        key = (source * self.attn_l).sum(-1, keepdim=True)
        query = (target * self.attn_r).sum(-1, keepdim=True)
        out, weights = self._attend(tokens, query, key, source, self.score, edge_weight, get_attention)
        if self.res_fc is not None:
            out = out + self._split(self.res_fc(h_target))
        if self.bias is not None:
            out = out + self._split(self.bias)
        if self.activation is not None:
            out = self.activation(out)
        return (out, weights) if get_attention and weights is not None else out


class GATv2Conv(AttentionConv):
    """``dgl.nn.GATv2Conv``: dynamic graph attention (Brody, Alon & Yahav, ICLR 2022, eq. 7).

    .. math::
        y_t = \\sum_{e = (s \\to t)} \\operatorname{softmax}_e\\big(a^\\top \\operatorname{LeakyReLU}(W_s x_s +
        W_t x_t)\\big)\\, W_s x_s

    Numbers, parameter names, state dicts and initial values (for one seed) are those of DGL 1.1.3. Dropout draws from
    another stream of random numbers.

    Args:
        in_feats: Features of a node, or of a source and of a target node.
        out_feats: D, features of one head.
        num_heads: H.
        feat_drop: Dropout on the features.
        attn_drop: Dropout on the attention weights.
        negative_slope: Of the LeakyReLU.
        residual: Add the target's features, projected where their number is not H * D.
        activation: Called on the output.
        allow_zero_in_degree: Accept nodes that read nobody: attention gives them exactly 0.
        bias: Give the projections a bias.
        share_weights: One projection for sources and targets (where ``in_feats`` is one number).
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        in_feats: int | tuple[int, int],
        out_feats: int,
        num_heads: int,
        feat_drop: float = 0.0,
        attn_drop: float = 0.0,
        negative_slope: float = 0.2,
        residual: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
        allow_zero_in_degree: bool = False,
        bias: bool = True,
        share_weights: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(in_feats, out_feats, num_heads, attn_drop, allow_zero_in_degree, backend)
        (source, target), width = self._in_pair, num_heads * out_feats
        self.negative_slope, self.share_weights = negative_slope, share_weights
        self.fc_src = nn.Linear(source, width, bias=bias)
        shared = share_weights and isinstance(in_feats, int)
        self.fc_dst = self.fc_src if shared else nn.Linear(target, width, bias=bias)
        self.attn = nn.Parameter(torch.empty(1, num_heads, out_feats))
        self.feat_drop = nn.Dropout(feat_drop)
        self.res_fc: nn.Module | None = None
        if residual:
            self.res_fc = nn.Identity() if target == width else nn.Linear(target, width, bias=bias)
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew, as DGL does."""
        for linear in (self.fc_src,) if self.share_weights else (self.fc_src, self.fc_dst):
            nn.init.xavier_normal_(linear.weight, gain=_GAIN)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.xavier_normal_(self.attn, gain=_GAIN)
        _reset_residual(self.res_fc)

    def forward(self, graph: Any, feat: Any, get_attention: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of every target node over the sources of its in-edges; see :meth:`GATConv.forward`.

        Returns:
            ``[N_t, ..., H, D]``. With weights, ``(out, weights [E, ..., H, 1])`` after dropout, in the order of DGL's
            edge ids; only then are two rows of H * D numbers made for each edge.
        """
        tokens, h_source, h_target = self._inputs(graph, feat)
        h_source = self.feat_drop(h_source)
        h_target = h_source[: tokens.num_targets] if h_target is None else self.feat_drop(h_target)
        source = self._split(self.fc_src(h_source))
        # The same rows through the same weights need not be projected twice.
        tied = self.fc_dst is self.fc_src and not isinstance(feat, (tuple, list))
        target = source[: tokens.num_targets] if tied else self._split(self.fc_dst(h_target))
        score = GATv2Score(self.num_heads, self.out_feats, self.negative_slope, att=self.attn.squeeze(0))
        out, weights = self._attend(tokens, target, source, source, score, None, get_attention)
        if self.res_fc is not None:
            out = out + self._split(self.res_fc(h_target))
        if self.activation is not None:
            out = self.activation(out)
        return (out, weights) if weights is not None else out


def _reset_residual(residual: nn.Module | None) -> None:
    if isinstance(residual, nn.Linear):
        nn.init.xavier_normal_(residual.weight, gain=_GAIN)
        if residual.bias is not None:
            nn.init.zeros_(residual.bias)
