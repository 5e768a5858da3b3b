"""Attention over the edges that a learned predictor keeps, as a PyG layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn.attention import AttentionOutput, attend
from graphattn.conv._inputs import Edges
from graphattn.conv._members import MemberConv
from graphattn.graph import TokenGraph
from graphattn.mechanisms.parts.connectivity_predictor import ConnectivityPredictor
from graphattn.mechanisms.parts.learned_choice import LearnedChoice, check_budget, products

__all__ = ["SparsifinerConv"]


class SparsifinerConv(MemberConv, LearnedChoice):
    r"""A learned edge sampler: multi-head attention over the best in-edges of each node, after the
    `"Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers"
    <https://arxiv.org/abs/2303.13755>`_ paper, on the edges of a graph.

    .. math::
        \mathbf{x}^{\prime}_i = \mathbf{W}_1 \mathbf{x}_i +
        \sum_{j \in \mathcal{M}(i)} \alpha_{i,j} \mathbf{W}_4 \mathbf{x}_j, \qquad
        \mathcal{M}(i) = \operatorname{top}_b \{ (\mathbf{U} \mathbf{B})_{i,j} : j \in \mathcal{N}(i) \}

    with :math:`\alpha` the softmax over :math:`\mathcal{M}(i)` of scaled dot products, for each head. The low-rank
    :math:`\mathbf{U} \mathbf{B}` comes from the features of the nodes, so it fits graphs of any size (the paper's has
    a learned row for each position of an image, and :math:`\mathbf{W}_1` and edge features are not in it). It costs
    :math:`r` products for each edge, and attention :math:`d`. The predictor summarises the nodes of a graph, so a batch
    of graphs needs :obj:`batch`, or a :class:`~graphattn.TokenGraph` that knows its members; all nodes are one graph
    otherwise.

    No gradient goes through the choice. The predictor learns from
    :func:`graphattn.mechanisms.reconstruction.reconstruct`, before the layer or along with it:

    .. code-block:: python

        loss = task_loss + reconstruction_loss(reconstruct(model, x, edge_index))

    Args:
        in_channels (int or tuple): Size of each input sample, or :obj:`-1` to
            derive the size from the first input(s) to the forward method.
            A tuple corresponds to the sizes of source and target
            dimensionalities.
        out_channels (int): Size of each output sample, for each head.
        heads (int, optional): Number of multi-head-attentions.
            (default: :obj:`1`)
        concat (bool, optional): If set to :obj:`False`, the multi-head
            attentions are averaged instead of concatenated.
            (default: :obj:`True`)
        keep (float, optional): Share of its in-edges that a node reads, rounded
            up. (default: :obj:`0.25`)
        keys (int, optional): The number of in-edges that a node reads (all, if
            it has fewer), instead of :obj:`keep`. (default: :obj:`None`)
        threshold (float, optional): Keep in-edges whose score is above it,
            instead. (default: :obj:`None`)
        keep_self (bool, optional): If set to :obj:`True`, a self-loop is kept
            besides, where there is one. (default: :obj:`False`)
        dropout (float, optional): Dropout probability of the weights.
            (default: :obj:`0`)
        edge_dim (int, optional): Edge feature dimensionality (in case
            there are any); a learned number for each head is added to the
            score, not to the choice. (default: :obj:`None`)
        bias (bool, optional): If set to :obj:`False`, the projections will not
            learn an additive bias. (default: :obj:`True`)
        root_weight (bool, optional): If set to :obj:`False`, the layer will
            not add the transformed root node features to the output.
            (default: :obj:`True`)
        rank (int, optional): :math:`r`. (default: :obj:`32`)
        coefficients (int, optional): Entries of a row of :math:`\mathbf{U}` that
            are kept. (default: :obj:`8`)
        backend (str, optional): See :func:`graphattn.attend`. (default: :obj:`"auto"`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`; :obj:`aggr` must be :obj:`"add"`.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F_{in})` or
          :math:`((|\mathcal{V_s}|, F_{s}), (|\mathcal{V_t}|, F_{t}))` if bipartite,
          edge indices :math:`(2, |\mathcal{E}|)`,
          edge features :math:`(|\mathcal{E}|, D)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, H * F_{out})` or
          :math:`(|\mathcal{V}_t|, H * F_{out})` if bipartite.
          If :obj:`return_attention_weights=True`, then
          :math:`(out, (edge\_index, \alpha))` with :math:`\alpha` of shape
          :math:`(|\mathcal{E}|, H)`, 0 on edges that were not kept.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        keep: float = 0.25,
        keys: int | None = None,
        threshold: float | None = None,
        keep_self: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
        rank: int = 32,
        coefficients: int = 8,
        *,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        check_budget(keep, keys)
        super().__init__(
            in_channels,
            out_channels,
            heads,
            concat,
            dropout,
            edge_dim,
            bias=bias,
            root_weight=root_weight,
            backend=backend,
            **kwargs,
        )
        self.keep, self.keys, self.threshold, self.keep_self = keep, keys, threshold, keep_self
        self.predictor = ConnectivityPredictor(out_channels, heads, rank=rank, coefficients=coefficients)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        assert self.predictor is not None
        self.predictor.reset_parameters()

    def _attend(
        self, edges: Edges, q: Tensor, k: Tensor, v: Tensor, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        graph, bias, options = edges.graph, self._edge_numbers(edges), self._options(v, need_weights)
        self.look(graph, q, k)
        if self.dense:
            found = attend(graph, q, k, v, edge_bias=bias, **options)
            return (found.out, found.weights) if isinstance(found, AttentionOutput) else (found, None)
        kept, numbers = self.among_edges(graph, self.edge_ranking(graph, q, k))
        if bias is not None:
            bias = bias.T.reshape(-1)[numbers]
        found = attend(kept, q, k, v, edge_bias=bias, **options)
        if not isinstance(found, AttentionOutput):
            return found, None
        assert found.weights is not None
        alpha = v.new_zeros(self.heads * graph.num_edges).index_put((numbers,), found.weights.view(-1))
        return found.out, alpha.view(self.heads, -1).T

    def edge_ranking(self, graph: TokenGraph, q: Tensor, k: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What ranks the candidates, ``[E, H]``."""
        assert self.predictor is not None
        with torch.no_grad():
            return products(graph, *self.predictor(q, k, graph, select=True))
