"""The graph transformer's attention as a PyG layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphattn.conv._base import QueryKeyValueConv
from graphattn.conv._inputs import Edges
from graphattn.errors import ArgumentError

__all__ = ["GraphTransformerConv"]


class GraphTransformerConv(QueryKeyValueConv):
    r"""The attention of the graph transformer from the `"A Generalization of
    Transformer Networks to Graphs" <https://arxiv.org/abs/2012.09699>`_ paper.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)} \alpha_{i,j}
        \mathbf{W}_V \mathbf{x}_j, \qquad
        \alpha_{i,j} = \textrm{softmax}_j \left( \textrm{clamp} \left(
        \frac{1}{\sqrt{d}} \sum_{c=1}^{d} (\mathbf{W}_Q \mathbf{x}_i)_c
        (\mathbf{W}_K \mathbf{x}_j)_c (\mathbf{W}_E \mathbf{e}_{ij})_c,
        \pm 5 \right) \right)

    for each head, and without the factor :math:`\mathbf{W}_E \mathbf{e}_{ij}` if :obj:`edge_dim` is :obj:`None`: an
    edge feature weighs the channels of the product; it is not added to the score. As in the released code, the
    score is clamped before the exponential. A node without in-edges gets exactly zero from attention.

    Output projection, residual, normalization and feed-forward network of the paper's block are for the model around
    this layer; :class:`graphattn.nn.Block` has them, and updates edge features, too.

    Args:
        in_channels (int or tuple): Size of each input sample, or :obj:`-1` to
            derive the size from the first input(s) to the forward method.
            A tuple corresponds to the sizes of source and target
            dimensionalities.
        out_channels (int): Size of each output sample, for each head :math:`d`.
        heads (int, optional): Number of multi-head-attentions.
            (default: :obj:`1`)
        concat (bool, optional): If set to :obj:`False`, the multi-head
            attentions are averaged instead of concatenated.
            (default: :obj:`True`)
        edge_dim (int, optional): Edge feature dimensionality (in case
            there are any). (default: :obj:`None`)
        clamp (float, optional): Bound on the magnitude of a score;
            :obj:`None` for no bound. (default: :obj:`5.0`)
        dropout (float, optional): Dropout probability of the normalized
            attention coefficients. The paper has none. (default: :obj:`0`)
        bias (bool, optional): If set to :obj:`True`, all projections learn
            an additive bias. (default: :obj:`False`)
        root_weight (bool, optional): If set to :obj:`True`, the layer adds
            the transformed root node features to the output, as
            :class:`~graphattn.conv.TransformerConv` does. (default: :obj:`False`)
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
        edge_dim: int | None = None,
        clamp: float | None = 5.0,
        dropout: float = 0.0,
        bias: bool = False,
        root_weight: bool = False,
        *,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        if clamp is not None and not clamp > 0:
            raise ArgumentError(f"clamp must be positive or None, got {clamp}")
        super().__init__(
            in_channels,
            out_channels,
            heads,
            concat,
            dropout,
            edge_dim,
            bias=bias,
            edge_bias=bias,
            root_weight=root_weight,
            backend=backend,
            **kwargs,
        )
        self.clamp = clamp
        self.reset_parameters()

    def _score_options(self, edges: Edges, q: Tensor) -> dict[str, Any]:
        gate = None
        if edges.attr is not None:
            assert self.lin_edge is not None
            gate = self._split(self.lin_edge(edges.attr))
        return {"clamp": self.clamp, "edge_gate": gate}
