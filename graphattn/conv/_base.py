"""What the layers of homogeneous and bipartite graphs have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphattn.conv._inputs import Edges, check_device, edges_of, node_features
from graphattn.conv._messages import MessageAttention
from graphattn.conv._packed import project_together
from graphattn.conv._pyg import Linear
from graphattn.errors import ArgumentError

__all__ = ["AttentionConv", "QueryKeyValueConv"]


class AttentionConv(MessageAttention):
    """Multi-head attention in the shape of a PyG layer.

    A subclass projects nodes (:meth:`_project`), says what edge features do to scores (:meth:`_score_options`) and
    values (:meth:`_edge_values`), and what comes after attention (:meth:`_combine`).

    Args:
        in_channels: Features of a node, or of a source and of a target node; -1: as many as the first input has.
        out_channels: C, features of one head.
        heads: H.
        concat: Concatenate the heads, rather than averaging them.
        dropout: On the attention weights.
        edge_dim: Features of an edge; ``None``: none.
        backend: See :func:`graphattn.attend`.
        **kwargs: ``aggr="add"`` and ``flow`` of :class:`torch_geometric.nn.conv.MessagePassing`.
    """

    lin_edge: Linear | None

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int,
        concat: bool,
        dropout: float,
        edge_dim: int | None,
        *,
        backend: str,
        **kwargs: Any,
    ) -> None:
        if out_channels < 1 or heads < 1:
            raise ArgumentError(f"out_channels and heads must be positive, got {out_channels} and {heads}")
        super().__init__(dropout=dropout, backend=backend, **kwargs)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.edge_dim = edge_dim

    @property
    def _in_pair(self) -> tuple[int, int]:
        channels = self.in_channels
        return (channels, channels) if isinstance(channels, int) else (channels[0], channels[1])

    @property
    def _width(self) -> int:
        return self.heads * self.out_channels if self.concat else self.out_channels

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        for child in self._modules.values():  # a module under two names twice, as in PyG: the same random numbers
            if isinstance(child, Linear):
                child.reset_parameters()

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
        size: tuple[int, int] | None = None,
    ) -> Any:
        """Attention of every target node over the sources of its in-edges.

        Args:
            x: ``[N, F]`` node features, or a pair: ``[N_s, F_s]`` of the sources, ``[N_t, F_t]`` of the targets.
            edge_index: int64 ``[2, E]``, sources and targets; an ``EdgeIndex``; a *transposed* adjacency as
                torch.sparse or ``SparseTensor``; or a :class:`~graphattn.TokenGraph`. A tensor ``[2, E]`` is sorted
                once, and again after a change in place (one through NumPy or ``.data`` is not seen), for all layers
                and steps that are given this object; a graph is sorted as it is made.
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
        x_source, x_target, num_targets = self._nodes(x, size)
        check_device("edge_index", edge_index, "x", x_source)
        edges = self._edges(edge_index, edge_attr, x_source.shape[0], num_targets)
        return self._over(edges, x_source, x_target, num_targets, bool(return_attention_weights))

    def _over(
        self, edges: Edges, x_source: Tensor, x_target: Tensor | None, num_targets: int, need_weights: bool
    ) -> Any:
        """What :meth:`forward` returns, over edges that have been checked."""
        q, k, v = self._project(x_source, x_target, num_targets)
        alpha: Tensor | None
        if self._observed:
            out, alpha = self._attend_shown(edges, q, k, v)
        else:
            out, alpha = self._attend(edges, q, k, v, need_weights)
        out = self._combine(out.flatten(1) if self.concat else out.mean(1), x_target)
        if need_weights:
            return out, (edges.edge_index, alpha)
        return out

    def _nodes(self, x: Any, size: tuple[int, int] | None) -> tuple[Tensor, Tensor | None, int]:
        """Features of sources and targets, and the number of targets."""
        x_source, x_target = node_features(x, self._node_widths, self._by_end(size))
        return x_source, x_target, x_target.shape[0]

    def _by_end(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """The numbers of sources and targets; PyG's ``size`` is in the order of the rows of ``edge_index``."""
        return size if size is None or self.flow == "source_to_target" else (size[1], size[0])

    @property
    def _node_widths(self) -> tuple[int, int]:
        """F_s and F_t, below 1 where not known yet."""
        raise NotImplementedError

    def _edges(self, edge_index: Any, edge_attr: Tensor | None, num_sources: int, num_targets: int) -> Edges:
        """The edges that are attended over, and their features."""
        return edges_of(edge_index, edge_attr, num_sources, num_targets, self.flow, self._edge_width)

    @property
    def _edge_width(self) -> int | None:
        return None if self.lin_edge is None else self.lin_edge.in_channels

    def _project(self, x_source: Tensor, x_target: Tensor | None, num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[N_t, H, D]``, keys ``[N_s, H, D]`` and values ``[N_s, H, C]``."""
        raise NotImplementedError

    def _attend(
        self, edges: Edges, q: Tensor, k: Tensor, v: Tensor, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Heads ``[N_t, H, C]`` and, where needed, weights ``[E, H]``."""
        return self._fuse(edges.graph, q, k, v, self._score_options(edges, q), need_weights)

    def _attend_shown(self, edges: Edges, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The same, message by message, for explainers and hooks."""
        return self._send(edges.graph, q, k, v, self._score_options(edges, q), self._edge_values(edges.attr))

    def _score_options(self, edges: Edges, q: Tensor) -> dict[str, Any]:
        """Arguments of :func:`graphattn.attend` that shape the score."""
        raise NotImplementedError

    def _edge_values(self, edge_attr: Tensor | None) -> Tensor | None:
        """``[E, H, C]`` that edges add to the values they carry."""
        return None

    def _combine(self, out: Tensor, x_target: Tensor | None) -> Tensor:
        """The output, from what attention gave and the target's own features."""
        raise NotImplementedError

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, self.out_channels))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"


class QueryKeyValueConv(AttentionConv):
    """Attention by dot products of projected queries and keys; arguments of :class:`AttentionConv`, and

    Args:
        bias: Give the key, query, value and root projections a bias.
        edge_bias: Give the edge projection a bias.
        root_weight: Add the projected features of the target itself to the output.
    """

    lin_skip: Linear | None

    def __init__(self, *args: Any, bias: bool, edge_bias: bool, root_weight: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        (source, target), width = self._in_pair, self.heads * self.out_channels
        self.lin_key = Linear(source, width, bias=bias)
        self.lin_query = Linear(target, width, bias=bias)
        self.lin_value = Linear(source, width, bias=bias)
        self.lin_edge = None if self.edge_dim is None else Linear(self.edge_dim, width, bias=edge_bias)
        self.lin_skip = Linear(target, self._width, bias=bias) if root_weight else None

    @property
    def _node_widths(self) -> tuple[int, int]:
        return self.lin_key.in_channels, self.lin_query.in_channels

    def _project(self, x_source: Tensor, x_target: Tensor | None, num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
        if x_target is x_source:
            q, k, v = project_together(x_source, (self.lin_query, self.lin_key, self.lin_value))
        else:
            q = self.lin_query(x_target)
            k, v = project_together(x_source, (self.lin_key, self.lin_value))
        return self._split(q), self._split(k), self._split(v)

    def _combine(self, out: Tensor, x_target: Tensor | None) -> Tensor:
        return out if self.lin_skip is None else out + self.lin_skip(x_target)
