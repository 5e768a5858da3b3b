"""Stochastically subsampled attention around a PyG layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.conv._inputs import asks_for_batch, is_edge_index, knows_members
from graphattn.conv._members import with_members
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.convert import as_token_graph, sparse_values
from graphattn.mechanisms.ssa import Subsampled

__all__ = ["SSAConv"]


class SSAConv(Subsampled):
    r"""Stochastically subsampled self-attention from the `"The Information Pathways Hypothesis: Transformers are
    Dynamic Self-Ensembles" <https://arxiv.org/abs/2306.01705>`_ paper, around any layer that takes
    :obj:`(x, edge_index, edge_attr)`: one of :mod:`graphattn.conv`, of PyG, or your own.

    .. math::
        \mathbf{X}^{\prime} = \mathrm{conv}\big(\mathbf{X},
        \{(j, i) \in \mathcal{E} : j \in \mathcal{I} \;\mathrm{or}\; j = i\}\big), \qquad
        \mathcal{I} \sim \textrm{uniform over } m\textrm{-subsets of } \mathcal{V}

    In training, each call draws a subset of the nodes (of each graph of a batch) that are read; in evaluation, all
    are, unless :func:`graphattn.mechanisms.sampling` or :func:`graphattn.nn.self_ensemble` say otherwise. On sparse
    edges (the paper has complete graphs) a node may be left with itself or with nothing.

    .. code-block:: python

        conv = SSAConv(TransformerConv(64, 16, heads=4, edge_dim=8), keep=0.25)
        out = conv(x, edge_index, edge_attr, batch=batch)

    Args:
        conv (torch.nn.Module): The layer.
        keep (float, optional): Share of the nodes that is read. (default: :obj:`0.25`)
        scheme (str, optional): :obj:`"uniform"`, :obj:`"local"` (windows
            along the order of nodes, or of :obj:`positions`), :obj:`"pairs"`
            (each edge by itself) or :obj:`"hops"` (in-edges by distance,
            see :obj:`hops`). (default: :obj:`"uniform"`)
        sigma (float, optional): See :class:`graphattn.mechanisms.SSA`. (default: :obj:`None`)
        minimum (int, optional): Least number of nodes that are read, of
            each graph. (default: :obj:`8`)
        always (int, optional): The first so many nodes of each graph are
            always read: virtual nodes. (default: :obj:`0`)
        keep_self (bool, optional): Whether self-loops that are there stay;
            :obj:`None` for yes on explicit edges. (default: :obj:`None`)
        positions (str or callable, optional): See
            :class:`graphattn.mechanisms.SSA`. (default: :obj:`None`)
        hops (callable, optional): See :class:`graphattn.mechanisms.SSA`.
            (default: :obj:`None`)

    Shapes:
        - **input:** as the layer, and
          the graph of each node :math:`(|\mathcal{V}|)` *(optional)*
        - **output:** as the layer; attention weights are of the edges that
          were drawn.
    """

    def __init__(self, conv: nn.Module, keep: float = 0.25, scheme: str = "uniform", **options: Any) -> None:
        super().__init__(keep, scheme, **options)
        if not isinstance(conv, nn.Module):
            raise ArgumentTypeError(f"conv must be a layer, got {type(conv).__name__}")
        self.conv = conv
        self._conv_with_batch = asks_for_batch(conv)

    def reset_parameters(self) -> None:
        """Draw all learnable parameters of the layer anew."""
        self.conv.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        *,
        batch: Tensor | tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Any:
        """The layer, on the edges that were drawn.

        Args:
            x: ``[N, C]``, or a pair for sources and targets.
            edge_index: ``[2, E]``, a :class:`~graphattn.TokenGraph`, or what else :mod:`graphattn.conv` takes. Of a
                sparse matrix with values the layer gets a part, as CSR.
            edge_attr: A row for each edge.
            batch: int64 ``[N]``, the graph of each node, ascending, so that each graph has its own draw (a pair for
                sources and targets); also for the layer, where it takes that. Nothing to a
                :class:`~graphattn.TokenGraph` that knows its members.
            **options: Further arguments of the layer.

        Raises:
            ArgumentError: If shapes do not fit.
        """
        if not self.draws:
            kept, rows = edge_index, edge_attr
        else:
            kept, rows = self._part(x, edge_index, edge_attr, batch)
        if self._conv_with_batch and not knows_members(kept):
            options["batch"] = batch
        return self.conv(x, kept, **options) if rows is None else self.conv(x, kept, rows, **options)

    def _part(
        self, x: Any, edge_index: Any, edge_attr: Tensor | None, batch: Tensor | tuple[Tensor, Tensor] | None
    ) -> tuple[Any, Any]:
        """The edges that were drawn, in the form in which they were given, and their rows."""
        sources, targets = (x, x) if isinstance(x, Tensor) else x
        count = sources.shape[0]
        to = count if targets is None else targets.shape[0]
        turned = is_edge_index(edge_index) and getattr(self.conv, "flow", None) == "target_to_source"
        given = edge_index.flip(0) if turned else edge_index
        graph = as_token_graph(given, num_targets=to, num_sources=count)
        if batch is not None and not knows_members(graph):
            graph = with_members(graph, batch)
        values = sparse_values(edge_index) if edge_attr is None else edge_attr
        if values is not None and values.shape[:1] != (graph.num_edges,):
            raise ArgumentError(
                f"edge_attr must have a row for each of {graph.num_edges} edges, got {list(values.shape)}"
            )
        drawn = self.draw(graph, edges=values is not None)
        part: Any = drawn.graph
        if not isinstance(edge_index, TokenGraph):
            part = part.edge_index.flip(0) if turned else part.edge_index
        if values is None:
            return part, None
        assert drawn.edge is not None
        rows = values.index_select(0, drawn.edge)
        if edge_attr is None and rows.dim() == 1:  # what values are is for the layer to say, as of the whole matrix
            return drawn.graph.to_torch_sparse(rows), None
        return part, rows
