"""Attention over the edges that a learned predictor keeps, as a PyG layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.attention import AttentionOutput, attend
from graphattn.conv._base import QueryKeyValueConv
from graphattn.conv._members import with_members
from graphattn.conv._pyg import Linear
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import drop_seed
from graphattn.mechanisms.parts.connectivity_predictor import ConnectivityPredictor
from graphattn.mechanisms.parts.learned_choice import LearnedChoice, check_budget, products

__all__ = ["SparsifinerConv"]


class SparsifinerConv(QueryKeyValueConv, LearnedChoice):
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
    :math:`r` products for each edge, and attention :math:`d`.

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
            edge_bias=False,
            backend=backend,
            **kwargs,
        )
        self.keep, self.keys, self.threshold, self.keep_self = keep, keys, threshold, keep_self
        if edge_dim is not None:
            self.lin_edge = Linear(edge_dim, heads, bias=False)  # a number for each head
        self.lin_skip = Linear(self._in_pair[1], self._width, bias=bias) if root_weight else None
        self.predictor = ConnectivityPredictor(out_channels, heads, rank=rank, coefficients=coefficients)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        assert self.predictor is not None
        self.predictor.reset_parameters()

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
        size: tuple[int, int] | None = None,
        batch: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Attention of every target node over the in-edges that are kept.

        Args:
            x: See :meth:`AttentionConv.forward`.
            edge_index: See :meth:`AttentionConv.forward`.
            edge_attr: ``[E, edge_dim]``.
            return_attention_weights: If true, return the weights, too.
            size: The numbers of source and target nodes, checked against ``x`` where given.
            batch: int64 ``[N]``, the graph of each node, ascending; a pair for sources and targets. The predictor
                summarises the nodes of a graph, and without it takes all for one.

        Returns:
            ``[N_t, H * C]``, or ``[N_t, C]`` if the heads are averaged. With weights, ``(out, (edge_index, alpha))``.

        Raises:
            ArgumentError: If shapes or values do not fit.
            ArgumentTypeError: If types or dtypes do not fit.
        """
        x_source, x_target, num_targets = self._nodes(x, size)
        edges = self._edges(edge_index, edge_attr, x_source.shape[0], num_targets)
        graph = edges.graph if batch is None else with_members(edges.graph, batch)
        if graph.leading:
            raise ArgumentError(f"edge_index must hold candidates without leading dimensions, got {graph}")
        q, k, v = self._project(x_source, x_target, num_targets)
        self.look(graph, q, k)
        bias = None
        if edges.attr is not None:
            assert self.lin_edge is not None
            bias = self.lin_edge(edges.attr)
        need = bool(return_attention_weights) or self._observed
        out, alpha = self._over_kept(graph, q, k, v, bias, need)
        if self._observed:
            assert alpha is not None
            out = self._show(graph, v, alpha)
        out = self._combine(out.flatten(1) if self.concat else out.mean(1), x_target)
        return (out, (edges.edge_index, alpha)) if return_attention_weights else out

    def edge_ranking(self, graph: TokenGraph, q: Tensor, k: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What ranks the candidates, ``[E, H]``."""
        assert self.predictor is not None
        with torch.no_grad():
            return products(graph, *self.predictor(q, k, graph, select=True))

    def _over_kept(
        self, graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, need: bool
    ) -> tuple[Tensor, Tensor | None]:
        p, seed = drop_seed(self, self.dropout, v)
        options: dict[str, Any] = {"need_weights": need, "backend": self.backend}
        options |= {"dropout_p": p, "dropout_seed": seed}
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

    def _show(self, graph: TokenGraph, v: Tensor, alpha: Tensor) -> Tensor:
        """Message by message, for explainers and hooks."""
        edge_index, size = graph.edge_index, (graph.num_sources, graph.num_targets)
        if self.flow == "target_to_source":
            edge_index, size = edge_index.flip(0), size[::-1]
        kept = F.dropout(alpha, self.dropout, self.training)
        layer: Any = self  # PyG's part of it is without types
        return layer.propagate(edge_index, size=size, value=v, alpha=kept, edge_value=None)

    def _combine(self, out: Tensor, x_target: Tensor | None) -> Tensor:
        skip: Any = self.lin_skip
        return out if skip is None else out + skip(x_target)
