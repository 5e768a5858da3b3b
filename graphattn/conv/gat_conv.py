"""PyG's GATConv on token graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.conv._additive import AdditiveConv
from graphattn.conv._inputs import Edges, node_features
from graphattn.conv._pyg import Linear, glorot
from graphattn.score import GATScore

__all__ = ["GATConv"]


class GATConv(AdditiveConv):
    r"""The graph attentional operator from the `"Graph Attention Networks"
    <https://arxiv.org/abs/1710.10903>`_ paper.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i) \cup \{ i \}}
        \alpha_{i,j}\mathbf{\Theta}_{s}\mathbf{x}_{j}, \qquad
        \alpha_{i,j} = \textrm{softmax}_j \left( \textrm{LeakyReLU} \left(
        \mathbf{a}^{\top}_{s} \mathbf{\Theta}_{s}\mathbf{x}_j
        + \mathbf{a}^{\top}_{t} \mathbf{\Theta}_{t}\mathbf{x}_i
        + \mathbf{a}^{\top}_{e} \mathbf{\Theta}_{e} \mathbf{e}_{i,j}
        \right) \right)

    with the last term where there are edge features, and :math:`\mathbf{\Theta}_{s} = \mathbf{\Theta}_{t}` if
    :obj:`in_channels` is one number.

    Arguments, parameters and state dict are those of :class:`torch_geometric.nn.conv.GATConv`, and so is the output,
    up to rounding. The differences:

    * The softmax is exact; PyG adds :math:`10^{-16}` to its denominator. A node without in-edges gets exactly zero
      from attention in both.
    * A false :obj:`return_attention_weights` returns no weights, and a true one returns
      :obj:`(edge_index, alpha)` for every form of :obj:`edge_index`, with :obj:`alpha` before dropout. Self-loops that
      were added come last, as in PyG. (Compiled code, whose sizes may not depend on values, lists self-loops that
      were replaced in their old places, with weight 0.)
    * Sparse :obj:`edge_index` and :obj:`edge_attr` go together with :obj:`add_self_loops`.
    * Under autocast the output has its dtype; PyG's is float32 there.
    * :obj:`edge_dim` and :obj:`edge_attr` belong together; PyG ignores either without the other.
    * No :math:`(|\mathcal{E}|, H, F_{out})` tensor is made, unless an explainer asks for messages; edge features are
      projected to one number for each head at once.

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
            generate edge features of self-loops (in case
            :obj:`edge_dim != None`).
            If given as :obj:`float` or :class:`torch.Tensor`, edge features of
            self-loops will be directly given by :obj:`fill_value`.
            If given as :obj:`str`, edge features of self-loops are computed by
            aggregating all features of edges that point to the specific node,
            according to a reduce operation. (:obj:`"add"`, :obj:`"mean"`,
            :obj:`"min"`, :obj:`"max"`, :obj:`"mul"`). (default: :obj:`"mean"`)
        bias (bool, optional): If set to :obj:`False`, the layer will not learn
            an additive bias. (default: :obj:`True`)
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
        self.lin = self.lin_src = self.lin_dst = None
        if isinstance(in_channels, int):
            self.lin = self._linear(in_channels)
        else:
            self.lin_src, self.lin_dst = self._linear(in_channels[0]), self._linear(in_channels[1])
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        att_edge = None if edge_dim is None else nn.Parameter(torch.empty(1, heads, out_channels))
        self.register_parameter("att_edge", att_edge)
        self._make_rest(bias)

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        glorot(self.att_src)
        glorot(self.att_dst)
        glorot(self.att_edge)

    def forward(  # type: ignore[override]  # PyG's order of arguments
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """See :meth:`AttentionConv.forward`. Targets may have no features, ``x = (sources, None)``: then the sources
        alone decide, and ``size`` says how many targets there are (default: as many as sources)."""
        return super().forward(x, edge_index, edge_attr, return_attention_weights, size)

    @property
    def _node_widths(self) -> tuple[int, int]:
        source, target = self._linears
        return source.in_channels, target.in_channels

    @property
    def _linears(self) -> tuple[Linear, Linear]:
        """Of sources and of targets."""
        if self.lin is not None:
            return self.lin, self.lin
        assert self.lin_src is not None and self.lin_dst is not None
        return self.lin_src, self.lin_dst

    def _nodes(self, x: Any, size: tuple[int, int] | None) -> tuple[Tensor, Tensor | None, int]:
        if not isinstance(x, (tuple, list)) or len(x) != 2 or x[1] is not None:
            return super()._nodes(x, size)
        size = self._by_end(size)
        x_source, _ = node_features(x, self._node_widths, size, need_targets=False)
        return x_source, None, x_source.shape[0] if size is None or size[1] is None else size[1]

    def _project(self, x_source: Tensor, x_target: Tensor | None, num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
        lin_source, lin_target = self._linears
        rows = lin_source(x_source)
        if x_target is x_source and lin_target is lin_source:
            k, q = (rows @ self._by_head(self.att_src, self.att_dst)).unsqueeze(-1).chunk(2, dim=1)
        else:
            k = (rows @ self._by_head(self.att_src)).unsqueeze(-1)
            q = k.new_zeros(num_targets, self.heads, 1)
            if x_target is not None:
                q = _map(lin_target, x_target, self._by_head(self.att_dst)).unsqueeze(-1)
        return q, k, self._split(rows)

    def _score_options(self, edges: Edges, q: Tensor) -> dict[str, Any]:
        gate = None
        if edges.attr is not None:
            gate = _map(self.lin_edge, edges.attr, self._by_head(self.att_edge)).unsqueeze(-1)
        return {"score": GATScore(self.negative_slope), "edge_gate": gate, "edge_bias": edges.bias(q)}

    def _by_head(self, *att: Tensor) -> Tensor:
        """``[H * C, vectors * H]``: times this matrix are the products of each head with its own ``[1, H, C]``."""
        own = torch.eye(self.heads, dtype=att[0].dtype, device=att[0].device)
        matrix = torch.cat(att).permute(1, 2, 0).unsqueeze(-1) * own[:, None, None]  # [H, C, vectors, H]
        return matrix.flatten(0, 1).flatten(1)


def _map(linear: Any, rows: Tensor, matrix: Tensor) -> Tensor:
    """``linear(rows) @ matrix``, without the rows of ``linear`` where nobody looks at them."""
    if type(linear) is Linear and not (linear._forward_hooks or linear._forward_pre_hooks):
        return rows @ (linear.weight.t() @ matrix)
    return linear(rows) @ matrix
