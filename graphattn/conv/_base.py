"""What every layer of this room has in common."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from graphattn.attention import attend, edge_weights
from graphattn.conv._inputs import edge_features, given_edge_index, node_features, token_graph
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import drop_seed
from graphattn.optional import require

require("torch_geometric", extra="pyg", purpose="graphattn.conv")

from torch_geometric.nn.conv import MessagePassing  # noqa: E402
from torch_geometric.nn.dense import Linear  # noqa: E402

__all__ = ["AttentionConv", "Linear"]

# Whoever registers one of these wants to see the messages.
_HOOKS = tuple(
    f"_{step}_forward_{when}" for step in ("propagate", "message", "aggregate") for when in ("pre_hooks", "hooks")
)


class AttentionConv(MessagePassing):
    """Multi-head attention in the shape of a PyG layer.

    A subclass says what edge features do to scores (:meth:`_score_options`) and values (:meth:`_edge_values`), and what
    comes after attention (:meth:`_combine`). Attention is one fused operation; only an explainer or one of PyG's
    hooks makes the layer send its messages ``[E, H, C]`` one by one through :meth:`propagate`.

    Args:
        in_channels: Features of a node, or of a source and of a target node; -1: as many as the first input has.
        out_channels: C, features of one head.
        heads: H.
        concat: Concatenate the heads, rather than averaging them.
        dropout: On the attention weights.
        edge_dim: Features of an edge; ``None``: none.
        bias: Give the key, query and value projections a bias.
        edge_bias: Give the edge projection a bias.
        backend: See :func:`graphattn.attend`.
        **kwargs: ``aggr="add"`` and ``flow`` of :class:`torch_geometric.nn.conv.MessagePassing`.
    """

    # What PyG needs to know of the call of `propagate` below.
    propagate_type = {"value": "Tensor", "alpha": "Tensor", "edge_value": "Tensor | None"}

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int,
        concat: bool,
        dropout: float,
        edge_dim: int | None,
        *,
        bias: bool,
        edge_bias: bool,
        backend: str,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        aggr = kwargs.setdefault("aggr", "add")
        if aggr not in ("add", "sum"):
            raise ArgumentError(f"aggr must be 'add': {name} sums values with weights that add up to 1; got {aggr!r}")
        if kwargs.get("decomposed_layers", 1) != 1:
            raise ArgumentError(
                f"decomposed_layers must be 1: {name} stores no messages that could be split; "
                f"got {kwargs['decomposed_layers']}"
            )
        if out_channels < 1 or heads < 1:
            raise ArgumentError(f"out_channels and heads must be positive, got {out_channels} and {heads}")
        if not 0.0 <= dropout < 1.0:
            raise ArgumentError(f"dropout must lie in [0, 1), got {dropout}")
        super().__init__(node_dim=0, **kwargs)

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.dropout = dropout
        self.edge_dim = edge_dim
        self.backend = backend

        source, target = self._in_pair
        self.lin_key = Linear(source, heads * out_channels, bias=bias)
        self.lin_query = Linear(target, heads * out_channels, bias=bias)
        self.lin_value = Linear(source, heads * out_channels, bias=bias)
        self.lin_edge = None if edge_dim is None else Linear(edge_dim, heads * out_channels, bias=edge_bias)

    @property
    def _in_pair(self) -> tuple[int, int]:
        channels = self.in_channels
        return (channels, channels) if isinstance(channels, int) else (channels[0], channels[1])

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        for child in self.children():
            if isinstance(child, Linear):
                child.reset_parameters()

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
        size: tuple[int, int] | None = None,
    ) -> Any:
        """Attention of every target node over the sources of its in-edges.

        Args:
            x: ``[N, F]`` node features, or a pair: ``[N_s, F_s]`` of the sources, ``[N_t, F_t]`` of the targets.
            edge_index: int64 ``[2, E]``, sources and targets; an ``EdgeIndex``; a *transposed* adjacency as
                torch.sparse or ``SparseTensor``; or a :class:`~graphattn.TokenGraph`, which is sorted once and for
                all: the quickest form where layers or steps share a graph.
            edge_attr: ``[E, edge_dim]`` edge features in the order of ``edge_index``; default: the values of a
                sparse ``edge_index``.
            return_attention_weights: If true, return the weights, too.
            size: The numbers of source and target nodes, checked against ``x`` where given.

        Returns:
            ``[N_t, H * C]``, or ``[N_t, C]`` if the heads are averaged. With weights, ``(out, (edge_index, alpha))``:
            int64 ``[2, E]`` and ``[E, H]`` before dropout, both in the order in which the edges were given.

        Raises:
            ArgumentError: If shapes or values do not fit.
            ArgumentTypeError: If types or dtypes do not fit.
        """
        if size is not None and self.flow == "target_to_source":  # PyG: in the order of the rows of edge_index
            size = (size[1], size[0])
        widths = (self.lin_key.in_channels, self.lin_query.in_channels)
        x_source, x_target = node_features(x, widths, size)
        graph = token_graph(edge_index, x_source.shape[0], x_target.shape[0], self.flow)
        edge_width = None if self.lin_edge is None else self.lin_edge.in_channels
        edge_attr = edge_features(edge_attr, edge_index, graph.num_edges, edge_width)

        query = self._split(self.lin_query(x_target))
        key = self._split(self.lin_key(x_source))
        value = self._split(self.lin_value(x_source))
        alpha: Tensor | None
        if self._observed:
            out, alpha = self._attend_by_messages(graph, query, key, value, edge_attr)
        else:
            out, alpha = self._attend(graph, query, key, value, edge_attr, bool(return_attention_weights))
        out = self._combine(out.flatten(1) if self.concat else out.mean(1), x_target)
        if return_attention_weights:
            return out, (given_edge_index(edge_index, graph), alpha)
        return out

    def _attend(
        self, graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, edge_attr: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Heads ``[N_t, H, C]`` and, where needed, weights ``[E, H]``."""
        p, seed = drop_seed(self, self.dropout, v)
        options = self._score_options(graph, q, edge_attr)
        out = attend(
            graph,
            q,
            k,
            v,
            dropout_p=p,
            dropout_seed=seed,
            need_weights=need_weights,
            backend=self.backend,
            **options,
        )
        return (out, None) if isinstance(out, Tensor) else (out.out, out.weights)

    def _attend_by_messages(
        self, graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, edge_attr: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same through PyG's hooks: every message is a tensor that one can see and mask."""
        alpha = edge_weights(graph, q, k, backend=self.backend, **self._score_options(graph, q, edge_attr))
        edge_index, size = graph.edge_index, (graph.num_sources, graph.num_targets)
        if self.flow == "target_to_source":
            edge_index, size = edge_index.flip(0), size[::-1]
        kept = F.dropout(alpha, self.dropout, self.training)
        out = self.propagate(edge_index, size=size, value=v, alpha=kept, edge_value=self._edge_values(edge_attr))
        return out, alpha

    def message(self, value_j: Tensor, alpha: Tensor, edge_value: Tensor | None) -> Tensor:
        """What each edge carries, ``[E, H, C]`` (see :class:`torch_geometric.nn.conv.MessagePassing`)."""
        if edge_value is not None:
            value_j = value_j + edge_value
        return value_j * alpha.unsqueeze(-1)

    def _score_options(self, graph: TokenGraph, q: Tensor, edge_attr: Tensor | None) -> dict[str, Any]:
        """Arguments of :func:`graphattn.attend` that shape the score."""
        raise NotImplementedError

    def _edge_values(self, edge_attr: Tensor | None) -> Tensor | None:
        """``[E, H, C]`` that edges add to the values they carry."""
        return None

    def _combine(self, out: Tensor, x_target: Tensor) -> Tensor:
        """The output, from what attention gave and the target's own features."""
        raise NotImplementedError

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, self.out_channels))

    @property
    def _observed(self) -> bool:
        return bool(self.explain) or any(getattr(self, name) for name in _HOOKS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"
