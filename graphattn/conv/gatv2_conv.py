"""PyG's GATv2Conv on token graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.conv._additive import AdditiveConv
from graphattn.conv._inputs import Edges
from graphattn.conv._pyg import glorot
from graphattn.score import GATv2Score

__all__ = ["GATv2Conv"]


class GATv2Conv(AdditiveConv):
    r"""The GATv2 operator from the `"How Attentive are Graph Attention Networks?"
    <https://arxiv.org/abs/2105.14491>`_ paper, which fixes the static attention problem of
    :class:`~graphattn.conv.GATConv`: every node may rank the others in its own way.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i) \cup \{ i \}}
        \alpha_{i,j}\mathbf{\Theta}_{s}\mathbf{x}_{j}, \qquad
        \alpha_{i,j} = \textrm{softmax}_j \left( \mathbf{a}^{\top}\textrm{LeakyReLU}
        \left( \mathbf{\Theta}_{s} \mathbf{x}_j + \mathbf{\Theta}_{t} \mathbf{x}_i
        + \mathbf{\Theta}_{e} \mathbf{e}_{i,j} \right) \right)

    with the last term where there are edge features.

    Arguments, parameters and state dict are those of :class:`torch_geometric.nn.conv.GATv2Conv`, and so is the output,
    up to rounding. The differences:

    * The softmax is exact; PyG adds :math:`10^{-16}` to its denominator. A node without in-edges gets exactly zero
      from attention in both.
    * A false :obj:`return_attention_weights` returns no weights, and a true one returns
      :obj:`(edge_index, alpha)` for every form of :obj:`edge_index`, with :obj:`alpha` before dropout. Self-loops that
      were added come last, as in PyG. (Compiled code, whose sizes may not depend on values, lists self-loops that
      were replaced in their old places, with weight 0.)
    * Sparse :obj:`edge_index` and :obj:`edge_attr` go together with :obj:`add_self_loops`.
    * Under autocast the output has its dtype; PyG's is float32 there.
    * :obj:`edge_dim` and :obj:`edge_attr` belong together; PyG ignores the features' absence.
    * Without edge features, whose projection is one, no :math:`(|\mathcal{E}|, H, F_{out})` tensor is made, unless
      weights are returned or an explainer asks for messages.

    A graph that has its self-loops already (:meth:`TokenGraph.with_self_loops`) and
    :obj:`add_self_loops=False` spare the layer to look for them.

    Args:
        in_channels (int or tuple): Size of each input sample, or :obj:`-1` to
            derive the size from the first input(s) to the forward method.
            A tuple corresponds to the sizes of source and target
            dimensionalities in case of a bipartite graph.
        out_channels (int): Size of each output sample.
        heads (int, optional): Number of multi-head-attentions.
            (default: :obj:`1`)
        concat (bool, optional): If set to :obj:`False`, the multi-head
            attentions are averaged instead of concatenated.
            (default: :obj:`True`)
        negative_slope (float, optional): LeakyReLU angle of the negative
            slope. (default: :obj:`0.2`)
        dropout (float, optional): Dropout probability of the normalized
            attention coefficients which exposes each node to a stochastically
            sampled neighborhood during training. (default: :obj:`0`)
        add_self_loops (bool, optional): If set to :obj:`False`, will not add
            self-loops to the input graph. (default: :obj:`True`)
        edge_dim (int, optional): Edge feature dimensionality (in case
            there are any). (default: :obj:`None`)
        fill_value (float or torch.Tensor or str, optional): The way to
            generate edge features of self-loops
            (in case :obj:`edge_dim != None`).
            If given as :obj:`float` or :class:`torch.Tensor`, edge features of
            self-loops will be directly given by :obj:`fill_value`.
            If given as :obj:`str`, edge features of self-loops are computed by
            aggregating all features of edges that point to the specific node,
            according to a reduce operation. (:obj:`"add"`, :obj:`"mean"`,
            :obj:`"min"`, :obj:`"max"`, :obj:`"mul"`). (default: :obj:`"mean"`)
        bias (bool, optional): If set to :obj:`False`, the layer will not learn
            an additive bias. (default: :obj:`True`)
        share_weights (bool, optional): If set to :obj:`True`, the same matrix
            will be applied to the source and the target node of every edge,
            *i.e.* :math:`\mathbf{\Theta}_{s} = \mathbf{\Theta}_{t}`.
            (default: :obj:`False`)
        residual (bool, optional): If set to :obj:`True`, the layer will add
            a learnable skip-connection. (default: :obj:`False`)
        backend (str, optional): See :func:`graphattn.attend`. (default: :obj:`"auto"`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`; :obj:`aggr` must be :obj:`"add"`.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F_{in})` or
          :math:`((|\mathcal{V_s}|, F_{s}), (|\mathcal{V_t}|, F_{t}))`
          if bipartite,
          edge indices :math:`(2, |\mathcal{E}|)`,
          edge features :math:`(|\mathcal{E}|, D)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V_t}|, H * F_{out})`.
          If :obj:`return_attention_weights=True`, then
          :math:`((|\mathcal{V_t}|, H * F_{out}), ((2, |\mathcal{E}|), (|\mathcal{E}|, H)))`
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        share_weights: bool = False,
        residual: bool = False,
        *,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            heads,
            concat,
            dropout,
            edge_dim,
            negative_slope=negative_slope,
            add_self_loops=add_self_loops,
            fill_value=fill_value,
            residual=residual,
            backend=backend,
            **kwargs,
        )
        self.share_weights = share_weights
        left, right = self._in_pair
        self.lin_l = self._linear(left, bias=bias)
        self.lin_r = self.lin_l if share_weights else self._linear(right, bias=bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self._make_rest(bias)

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        glorot(self.att)

    @property
    def _node_widths(self) -> tuple[int, int]:
        return self.lin_l.in_channels, self.lin_r.in_channels

    def _project(self, x_source: Tensor, x_target: Tensor | None, num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
        k = self._split(self.lin_l(x_source))
        same = x_target is x_source and self.lin_r is self.lin_l
        return k if same else self._split(self.lin_r(x_target)), k, k

    def _score_options(self, edges: Edges, q: Tensor) -> dict[str, Any]:
        gate = None
        if edges.attr is not None:
            assert self.lin_edge is not None
            gate = self._split(self.lin_edge(edges.attr))
        score = GATv2Score(self.heads, self.out_channels, self.negative_slope, att=self.att.squeeze(0))
        return {"score": score, "edge_gate": gate, "edge_bias": edges.bias(q)}
