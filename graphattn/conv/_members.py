"""Members of a batch, as PyG tells them: by the graph of each node; and layers that ask for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn.conv._base import QueryKeyValueConv
from graphattn.conv._inputs import Edges, check_device
from graphattn.conv._pyg import Linear
from graphattn.conv._remembered import remembered
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.check import check_members
from graphattn.graph.csr import batch_ptr
from graphattn.graph.edges import in_members
from graphattn.mechanisms.base import drop_seed

__all__ = ["MemberConv", "with_members"]


class MemberConv(QueryKeyValueConv):
    """Attention that asks which nodes are one graph, and adds a learned number of each edge and head to the score.

    A subclass computes it (:meth:`_attend`); arguments of :class:`QueryKeyValueConv`, without ``edge_bias``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, edge_bias=False, **kwargs)
        if self.edge_dim is not None:
            self.lin_edge = Linear(self.edge_dim, self.heads, bias=False)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
        size: tuple[int, int] | None = None,
        batch: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Attention of every target node over what it reads of its own graph.

        Args:
            x: See :meth:`AttentionConv.forward`.
            edge_index: See :meth:`AttentionConv.forward`.
            edge_attr: ``[E, edge_dim]``.
            return_attention_weights: If true, return the weights, too.
            size: The numbers of source and target nodes, checked against ``x`` where given.
            batch: int64 ``[N]``, the graph of each node, ascending; a pair for sources and targets. Looked at once for
                as long as it and ``edge_index`` live. ``None``: all nodes are one graph, unless ``edge_index`` is a
                :class:`~graphattn.TokenGraph` that knows its members.

        Returns:
            ``[N_t, H * C]``, or ``[N_t, C]`` if the heads are averaged. With weights, ``(out, (edge_index, alpha))``:
            int64 ``[2, E]`` and ``[E, H]`` before dropout, both in the order in which the edges were given.

        Raises:
            ArgumentError: If shapes or values do not fit.
            ArgumentTypeError: If types or dtypes do not fit.
        """
        x_source, x_target, num_targets = self._nodes(x, size)
        check_device("edge_index", edge_index, "x", x_source)
        edges = self._edges(edge_index, edge_attr, x_source.shape[0], num_targets)
        if batch is not None:
            edges = edges._replace(graph=with_members(edges.graph, batch))
        return self._over(edges, x_source, x_target, num_targets, bool(return_attention_weights))

    def _attend_shown(self, edges: Edges, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        _, alpha = self._attend(edges, q, k, v, need_weights=True)
        assert alpha is not None
        return self._show(edges.graph, v, alpha), alpha

    def _edge_numbers(self, edges: Edges) -> Tensor | None:
        """``[E, H]``, added to the scores."""
        if edges.attr is None:
            return None
        assert self.lin_edge is not None
        return self.lin_edge(edges.attr)

    def _options(self, v: Tensor, need_weights: bool) -> dict[str, Any]:
        """How to compute it; where messages are shown, it is they that are dropped."""
        p, seed = (0.0, None) if self._observed else drop_seed(self, self.dropout, v)
        return {"dropout_p": p, "dropout_seed": seed, "need_weights": need_weights, "backend": self.backend}


def with_members(graph: TokenGraph, batch: Tensor | tuple[Tensor, Tensor]) -> TokenGraph:
    """The graph with its members marked; waits for the device, once for all calls with these objects."""
    if graph.target_ptr is not None:
        raise ArgumentError("batch must be None for a TokenGraph that knows its members, got a tensor")
    pair = tuple(batch) if isinstance(batch, (tuple, list)) else (batch, batch)
    if len(pair) != 2 or not all(isinstance(x, Tensor) and x.dtype == torch.int64 for x in pair):
        raise ArgumentTypeError("batch must be an int64 tensor [N], or a pair for sources and targets")
    for name, x, size in zip(("sources", "targets"), pair, (graph.num_sources, graph.num_targets), strict=True):
        if x.shape != (size,):
            raise ArgumentError(f"batch must have an entry for each of {size} {name}, got {list(x.shape)}")

    def make() -> TokenGraph:
        if any(bool((x.diff(prepend=x.new_zeros(1)) < 0).any()) for x in pair):
            raise ArgumentError("batch must ascend from 0 (PyG's batches do); sort the nodes by their graph first")
        count = max((int(x[-1]) + 1 for x in pair if x.numel()), default=1)
        source_ptr, target_ptr = (batch_ptr(x, count) for x in pair)
        if pair[0] is pair[1]:
            source_ptr = target_ptr
        check_members(graph.edge_index, target_ptr, source_ptr)
        return in_members(graph, target_ptr, source_ptr)

    return remembered((graph, *pair), ("members",), make)
