"""Stochastically subsampled attention around a PyG layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.convert import as_token_graph
from graphattn.graph.csr import batch_ptr
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

    def reset_parameters(self) -> None:
        """Draw all learnable parameters of the layer anew."""
        self.conv.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The layer, on the edges that were drawn.

        Args:
            x: ``[N, C]``, or a pair for sources and targets.
            edge_index: ``[2, E]``, a :class:`~graphattn.TokenGraph`, or what else :mod:`graphattn.conv` takes.
            edge_attr: A row for each edge.
            batch: int64 ``[N]``, the graph of each node, ascending, so that each graph has its own draw.
            **options: Further arguments of the layer.

        Raises:
            ArgumentError: If shapes do not fit.
        """
        given = (edge_index,) if edge_attr is None else (edge_index, edge_attr)
        if not self.draws:
            return self.conv(x, *given, **options)
        sources, targets = (x, x) if isinstance(x, Tensor) else x
        count = sources.shape[0]
        to = count if targets is None else targets.shape[0]
        graph = as_token_graph(edge_index, num_targets=to, num_sources=count, ptr=_ptr(batch, count))
        drawn = self.draw(graph, edges=edge_attr is not None)
        kept: Any = drawn.graph if isinstance(edge_index, TokenGraph) else drawn.graph.edge_index
        if edge_attr is None:
            return self.conv(x, kept, **options)
        assert drawn.edge is not None
        return self.conv(x, kept, edge_attr.index_select(0, drawn.edge), **options)


def _ptr(batch: Tensor | None, count: int) -> Tensor | None:
    if batch is None:
        return None
    if batch.dtype != torch.int64 or batch.shape != (count,):
        raise ArgumentError(f"batch must be int64 [{count}], got {batch.dtype} {list(batch.shape)}")
    return batch_ptr(batch)
