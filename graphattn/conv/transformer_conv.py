"""PyG's TransformerConv on token graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.attention import edge_weights, propagate
from graphattn.backends import choose_steps
from graphattn.conv._base import QueryKeyValueConv
from graphattn.conv._edge_rows import EdgeRows
from graphattn.conv._inputs import Edges
from graphattn.conv._pyg import Linear
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import drop_seed
from graphattn_kernels import csr_attention
from graphattn_kernels.csr_attention.api import TRITON_WIDTH

__all__ = ["TransformerConv"]


class TransformerConv(QueryKeyValueConv):
    r"""The graph transformer operator from the `"Masked Label Prediction:
    Unified Message Passing Model for Semi-Supervised Classification"
    <https://arxiv.org/abs/2009.03509>`_ paper.

    .. math::
        \mathbf{x}^{\prime}_i = \mathbf{W}_1 \mathbf{x}_i +
        \sum_{j \in \mathcal{N}(i)} \alpha_{i,j} \left(
        \mathbf{W}_2 \mathbf{x}_{j} + \mathbf{W}_6 \mathbf{e}_{ij} \right), \qquad
        \alpha_{i,j} = \textrm{softmax}_j \left(
        \frac{(\mathbf{W}_3\mathbf{x}_i)^{\top}
        (\mathbf{W}_4\mathbf{x}_j + \mathbf{W}_6 \mathbf{e}_{ij})}{\sqrt{d}} \right)

    Arguments, parameters and state dict are those of
    :class:`torch_geometric.nn.conv.TransformerConv`, and so is the output, up to rounding. Three differences:

    * The softmax is exact; PyG adds :math:`10^{-16}` to its denominator. A node without in-edges gets exactly zero
      from attention in both.
    * A false :obj:`return_attention_weights` returns no weights, and a true one returns
      :obj:`(edge_index, alpha)` for every form of :obj:`edge_index`.
    * No :math:`(|\mathcal{E}|, H, F_{out})` tensor is made, unless an explainer asks for messages or :obj:`edge_dim`
      is larger than :obj:`out_channels`.

    Args:
        in_channels (int or tuple): Size of each input sample, or :obj:`-1` to
            derive the size from the first input(s) to the forward method.
            A tuple corresponds to the sizes of source and target
            dimensionalities.
        out_channels (int): Size of each output sample.
        heads (int, optional): Number of multi-head-attentions.
            (default: :obj:`1`)
        concat (bool, optional): If set to :obj:`False`, the multi-head
            attentions are averaged instead of concatenated.
            (default: :obj:`True`)
        beta (bool, optional): If set, will combine aggregation and
            skip information via

            .. math::
                \mathbf{x}^{\prime}_i = \beta_i \mathbf{W}_1 \mathbf{x}_i +
                (1 - \beta_i) \mathbf{m}_i

            with :math:`\mathbf{m}_i` the sum above and
            :math:`\beta_i = \textrm{sigmoid}(\mathbf{w}_5^{\top}
            [ \mathbf{m}_i, \mathbf{W}_1 \mathbf{x}_i, \mathbf{m}_i - \mathbf{W}_1
            \mathbf{x}_i ])`. (default: :obj:`False`)
        dropout (float, optional): Dropout probability of the normalized
            attention coefficients which exposes each node to a stochastically
            sampled neighborhood during training. (default: :obj:`0`)
        edge_dim (int, optional): Edge feature dimensionality (in case
            there are any). Edge features are added to keys and values after
            one linear transformation. (default: :obj:`None`)
        bias (bool, optional): If set to :obj:`False`, the layer will not learn
            an additive bias. (default: :obj:`True`)
        root_weight (bool, optional): If set to :obj:`False`, the layer will
            not add the transformed root node features to the output and the
            option :attr:`beta` is set to :obj:`False`. (default: :obj:`True`)
        backend (str, optional): See :func:`graphattn.attend`. (default: :obj:`"auto"`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`; :obj:`aggr` must be :obj:`"add"`.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F_{in})` or
          :math:`((|\mathcal{V_s}|, F_{s}), (|\mathcal{V_t}|, F_{t}))` if bipartite,
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
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
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
            bias=bias,
            edge_bias=False,
            root_weight=True,  # made as in PyG, whether it is used or not
            backend=backend,
            **kwargs,
        )
        self.beta = beta and root_weight
        self.root_weight = root_weight
        self.lin_beta = Linear(3 * self._width, 1, bias=False) if self.beta else None
        self.reset_parameters()

    def _attend(
        self, edges: Edges, q: Tensor, k: Tensor, v: Tensor, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        graph, edge_attr = edges.graph, edges.attr
        if edge_attr is None:
            return super()._attend(edges, q, k, v, need_weights)
        if not need_weights and self._takes_rows(edge_attr):
            p, seed = drop_seed(self, self.dropout, v)
            out, *_ = csr_attention(
                *(graph.structure, q, k, v),
                edge_rows=self._project_edges(edge_attr).to(q.dtype),
                dropout_p=p,
                dropout_seed=seed,
                backend=self.backend,
            )
            return out, None
        rows = self._edge_rows(graph, edge_attr)
        bias = rows.dot(q) * self.out_channels**-0.5
        alpha = edge_weights(graph, q, k, edge_bias=bias, backend=self.backend)
        kept = F.dropout(alpha, self.dropout, self.training)
        return propagate(graph, kept, v, backend=self.backend) + rows.sum(kept), alpha

    def _takes_rows(self, edge_attr: Tensor) -> bool:
        """Whether attention is one kernel that reads the projected rows of edges. Where these are wider than edges they
        are never made (:class:`EdgeRows`); where there is no such kernel, keys and values would be copied for each
        edge."""
        if edge_attr.shape[1] <= self.out_channels:
            return False
        name = choose_steps(self.backend, edge_attr.device)  # raises where a backend was named that cannot run
        return name == "numba" or (name == "triton" and self.out_channels <= TRITON_WIDTH)

    def _score_options(self, edges: Edges, q: Tensor) -> dict[str, Any]:
        if edges.attr is None:
            return {}
        return {"edge_bias": self._edge_rows(edges.graph, edges.attr).dot(q) * self.out_channels**-0.5}

    def _edge_rows(self, graph: TokenGraph, edge_attr: Tensor) -> EdgeRows:
        return EdgeRows(graph, edge_attr, self._project_edges, self.out_channels, self.backend)

    def _edge_values(self, edge_attr: Tensor | None) -> Tensor | None:
        return None if edge_attr is None else self._project_edges(edge_attr)

    def _project_edges(self, rows: Tensor) -> Tensor:
        assert self.lin_edge is not None
        return self._split(self.lin_edge(rows))

    def _combine(self, out: Tensor, x_target: Tensor | None) -> Tensor:
        if not self.root_weight:
            return out
        assert self.lin_skip is not None
        skip = self.lin_skip(x_target)
        if self.lin_beta is None:
            return out + skip
        beta = self.lin_beta(torch.cat([out, skip, out - skip], dim=-1)).sigmoid()
        return beta * skip + (1 - beta) * out
