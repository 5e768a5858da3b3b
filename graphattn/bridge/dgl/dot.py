"""DGL's DotGatConv."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.bridge.dgl.base import AttentionConv
from graphattn.score import DotScore

__all__ = ["DotGatConv"]


class DotGatConv(AttentionConv):
    """``dgl.nn.DotGatConv``: the transformer's scaled dot product over the edges of a graph.

    .. math::
        y_t = \\sum_{e = (s \\to t)} \\operatorname{softmax}_e\\big((W_t x_t)^\\top W_s x_s / \\sqrt{D}\\big)\\, W_s x_s

    Numbers, parameter names and state dicts are those of DGL 1.1.3, but for a pair of features on a graph of one node
    type, where DGL reads the targets' features at both ends.

    Args:
        in_feats: Features of a node (then :math:`W_s = W_t`), or of a source and of a target node.
        out_feats: D, features of one head.
        num_heads: H.
        allow_zero_in_degree: Accept nodes that read nobody: attention gives them exactly 0.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        in_feats: int | tuple[int, int],
        out_feats: int,
        num_heads: int,
        allow_zero_in_degree: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(in_feats, out_feats, num_heads, 0.0, allow_zero_in_degree, backend)
        (source, target), width = self._in_pair, num_heads * out_feats
        if isinstance(in_feats, int):
            self.fc = nn.Linear(source, width, bias=False)
        else:
            self.fc_src = nn.Linear(source, width, bias=False)
            self.fc_dst = nn.Linear(target, width, bias=False)
        self.score = DotScore()

    def forward(self, graph: Any, feat: Any, get_attention: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of every target node over the sources of its in-edges; see :meth:`GATConv.forward`."""
        tokens, h_source, h_target = self._inputs(graph, feat)
        one = isinstance(self.in_feats, int)
        source = self._split((self.fc if one else self.fc_src)(h_source))
        if h_target is None:
            target = source[: tokens.num_targets]
        else:
            target = self._split((self.fc if one else self.fc_dst)(h_target))
        out, weights = self._attend(tokens, target, source, source, self.score, None, get_attention)
        return (out, weights) if weights is not None else out
