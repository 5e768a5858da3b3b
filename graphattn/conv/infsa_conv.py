"""Infinite self-attention as a PyG layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphattn.attention import AttentionOutput
from graphattn.conv._inputs import Edges
from graphattn.conv._members import MemberConv
from graphattn.errors import ArgumentError
from graphattn.mechanisms.infsa import infsa
from graphattn.mechanisms.parts.infinite import Decay

__all__ = ["InfSAConv"]


class InfSAConv(MemberConv):
    r"""Infinite self-attention from the `"Self-Attention And Beyond the Infinite: Towards Linear Transformers with
    Infinite Self-Attention" <https://arxiv.org/abs/2603.00175>`_ paper, on the edges of a graph.

    .. math::
        \mathbf{A}^{+}_{i,j} = \max \left( \frac{1}{d} (\mathbf{W}_2 \mathbf{x}_i)^{\top} (\mathbf{W}_3 \mathbf{x}_j)
        + \mathbf{w}_5^{\top} \mathbf{e}_{ij}, 0 \right), \qquad
        \mathbf{\hat{A}} = \frac{\mathbf{A}^{+}}{\lVert \mathbf{A}^{+} \rVert_F + \epsilon}

    .. math::
        \mathbf{X}^{\prime} = \mathbf{X} \mathbf{W}_1 +
        \sum_{t=1}^{T} (\gamma \mathbf{\hat{A}})^t \mathbf{X} \mathbf{W}_4

    for each head, with the edges that the graph has. The norm is that of a whole graph, so a batch of graphs needs
    :obj:`batch`, or a :class:`~graphattn.TokenGraph` that knows its members; all nodes are one graph otherwise. The
    discount :math:`\gamma` is learned for each head (in the released code it has no gradient). Edge features and
    :math:`\mathbf{W}_1` are not in the paper, whose equations are unverified: see
    :func:`graphattn.mechanisms.infsa.infsa`.

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
        hops (int, optional): Number of hops :math:`T`; :obj:`None` for all,
            by solving a linear system. (default: :obj:`1`)
        gamma (float, optional): Initial discount of a hop, between 0 and 1.
            (default: :obj:`0.95`)
        learn_gamma (bool, optional): If set to :obj:`False`, the discount
            stays as it is. (default: :obj:`True`)
        dropout (float, optional): Dropout probability of the weights, the same
            for all hops. (default: :obj:`0`)
        edge_dim (int, optional): Edge feature dimensionality (in case
            there are any). (default: :obj:`None`)
        bias (bool, optional): If set to :obj:`False`, the projections will not
            learn an additive bias. (default: :obj:`True`)
        root_weight (bool, optional): If set to :obj:`False`, the layer will
            not add the transformed root node features to the output.
            (default: :obj:`True`)
        eps (float, optional): Added to the norm. (default: :obj:`1e-6`)
        backend (str, optional): See :func:`graphattn.attend`. (default: :obj:`"auto"`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`; :obj:`aggr` must be :obj:`"add"`.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F_{in})` or
          :math:`((|\mathcal{V_s}|, F_{s}), (|\mathcal{V_t}|, F_{t}))` if bipartite (with one hop),
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
        hops: int | None = 1,
        gamma: float = 0.95,
        learn_gamma: bool = True,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
        eps: float = 1e-6,
        *,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int) or hops < 1):
            raise ArgumentError(f"hops must be a positive number, or None for all, got {hops!r}")
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
        self.hops, self.eps = hops, eps
        self.gamma = Decay(heads, gamma, learn_gamma)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        self.gamma.reset_parameters()

    def _attend(
        self, edges: Edges, q: Tensor, k: Tensor, v: Tensor, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self._observed and self.hops != 1:
            raise ArgumentError(f"an explainer or hook sees the messages of one hop, this layer has hops={self.hops}")
        options = {"hops": self.hops, "eps": self.eps, **self._options(v, need_weights)}
        found = infsa(edges.graph, q, k, v, self.gamma(), edge_bias=self._edge_numbers(edges), **options)
        return (found.out, found.weights) if isinstance(found, AttentionOutput) else (found, None)
