"""What PyG users hand to a layer, brought into one form and checked."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphattn.conv._remembered import remembered
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.convert import as_token_graph, sparse_values
from graphattn.graph.matrix import is_matrix

__all__ = [
    "Edges",
    "asks_for_batch",
    "check_device",
    "check_features",
    "edge_features",
    "edges_of",
    "is_edge_index",
    "knows_members",
    "node_features",
    "token_graph",
]


class Edges(NamedTuple):
    """The edges of one call of a layer."""

    graph: TokenGraph
    attr: Tensor | None
    """``[E, F]``."""
    listed: Tensor | None = None
    """``[2, E]`` in the caller's rows and order; ``None``: as the graph lists them."""
    unread: Tensor | None = None
    """bool ``[E]``: listed, but not read; ``None``: all are read."""

    @property
    def edge_index(self) -> Tensor:
        """``[2, E]`` in the order in which the edges were given."""
        return self.graph.edge_index if self.listed is None else self.listed

    def bias(self, like: Tensor) -> Tensor | None:
        """``[E, 1]``, added to scores: -inf on edges that are not read."""
        if self.unread is None:
            return None
        return like.new_zeros(self.unread.shape[0], 1).masked_fill(self.unread.unsqueeze(1), float("-inf"))


def edges_of(
    edge_index: Any, edge_attr: Any, num_sources: int, num_targets: int, flow: str, width: int | None
) -> Edges:
    """The edges as they were given, with features (see :func:`token_graph` and :func:`edge_features`)."""
    graph = token_graph(edge_index, num_sources, num_targets, flow)
    attr = edge_features(edge_attr, edge_index, graph.num_edges, width)
    return Edges(graph, attr, edge_index if is_edge_index(edge_index) else None)


def node_features(
    x: Any,
    widths: tuple[int, int],
    size: tuple[int | None, int | None] | None,
    *,
    need_targets: bool = True,
) -> tuple[Tensor, Any]:
    """Features of sources and of targets, from one tensor or a pair.

    Args:
        x: ``[N, F]``, or the pair ``[N_s, F_s]``, ``[N_t, F_t]``.
        widths: F_s and F_t; below 1: not known yet.
        size: N_s and N_t, where the caller gave them.
        need_targets: Refuse a pair whose second entry is ``None``.
    """
    pair = isinstance(x, (tuple, list))
    if pair and len(x) != 2:
        raise ArgumentError(f"x must be a tensor or a pair (sources, targets), got {len(x)} entries")
    both = tuple(x) if pair else (x, x)
    for at, (rows, width) in enumerate(zip(both, widths, strict=True)):
        if rows is None and at == 1 and not need_targets:
            continue
        name = f"x[{at}] ({'source' if at == 0 else 'target'} features)" if pair else "x"
        if rows is None and at == 1:
            raise ArgumentTypeError(
                f"{name} must be a floating tensor, got None; the target nodes ask, so their features are needed"
            )
        check_features(name, rows, width)
        if size is not None and size[at] is not None and size[at] != rows.shape[0]:
            raise ArgumentError(f"size must be the numbers of rows of x, got {size} for {name} of {list(rows.shape)}")
    return both


def check_features(name: str, rows: Any, width: int) -> None:
    """Raise unless ``rows`` are floating ``[N, width]`` (a width below 1: not known yet)."""
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise ArgumentTypeError(f"{name} must be a floating tensor, got {got}")
    if rows.dim() != 2 or (width > 0 and rows.shape[1] != width):
        expected = f"[N, {width}]" if width > 0 else "[N, F]"
        raise ArgumentError(f"{name} must have shape {expected}, got {list(rows.shape)}")


def token_graph(edge_index: Any, num_sources: int, num_targets: int, flow: str) -> TokenGraph:
    """The token graph of any form of ``edge_index``.

    Args:
        edge_index: See :meth:`AttentionConv.forward`.
        num_sources: Rows of the sources' features.
        num_targets: Rows of the targets' features.
        flow: PyG's ``flow``; ``"target_to_source"`` exchanges the rows of an ``edge_index``.
    """
    if not (isinstance(edge_index, (Tensor, TokenGraph)) or is_matrix(edge_index)):
        raise ArgumentTypeError(
            "edge_index must be an integer tensor [2, E], an EdgeIndex, a sparse transposed adjacency or a TokenGraph, "
            f"got {type(edge_index).__name__}"
        )
    if isinstance(edge_index, TokenGraph) and edge_index.leading:
        raise ArgumentError(
            f"edge_index must be one graph, got a TokenGraph with leading dimensions {list(edge_index.leading)}; "
            "graphattn.attend takes those"
        )
    turned = flow == "target_to_source"
    if turned and not is_edge_index(edge_index):
        raise ArgumentError(
            f"flow='target_to_source' needs an edge_index [2, E]; transpose the {type(edge_index).__name__} instead"
        )
    if is_edge_index(edge_index):

        def make() -> TokenGraph:
            edges = edge_index.flip(0) if turned else edge_index
            return as_token_graph(edges, num_targets=num_targets, num_sources=num_sources)

        return remembered((edge_index,), ("graph", num_sources, num_targets, turned), make)
    graph = as_token_graph(edge_index)
    is_mask = isinstance(edge_index, Tensor) and edge_index.dtype == torch.bool
    hint = "; a boolean tensor is a mask [targets, sources] and no list [2, E]" if is_mask else ""
    for nodes, found, rows in (
        ("source", graph.num_sources, num_sources),
        ("target", graph.num_targets, num_targets),
    ):
        if found != rows:
            raise ArgumentError(f"edge_index must be for as many {nodes} nodes as x has, {rows}, got {found}{hint}")
    return graph


def check_device(name: str, edges: Any, like: str, x: Tensor) -> None:
    """Raise unless a tensor or graph ``edges``, of that name, is on the device of the features ``x``, called ``like``;
    other forms are left to :func:`graphattn.attend`."""
    if isinstance(edges, (Tensor, TokenGraph)) and edges.device != x.device:
        raise ArgumentError(f"{name} must be on the device of {like}, {x.device}, got {edges.device}")


def edge_features(edge_attr: Any, edge_index: Any, num_edges: int, width: int | None) -> Tensor | None:
    """``[E, F]`` edge features, from ``edge_attr`` or from the values of a sparse ``edge_index``.

    Args:
        edge_attr: ``[E, F]``, ``[E]`` where F is 1, or ``None``.
        edge_index: See :meth:`AttentionConv.forward`.
        num_edges: E.
        width: F; below 1: not known yet; ``None``: the layer has no edge features.
    """
    if width is None:
        if edge_attr is not None:
            raise ArgumentError("edge_attr was given to a layer made with edge_dim=None; give edge_dim its width")
        return None
    name = "edge_attr"
    if edge_attr is None:
        name, edge_attr = "edge_attr (the values of edge_index)", sparse_values(edge_index)
    if edge_attr is None:
        raise ArgumentError(f"edge_attr [{num_edges}, {width}] is needed by a layer made with edge_dim={width}")
    if not isinstance(edge_attr, Tensor) or not edge_attr.is_floating_point():
        got = edge_attr.dtype if isinstance(edge_attr, Tensor) else type(edge_attr).__name__
        raise ArgumentTypeError(f"{name} must be a floating tensor, got {got}; embed categories first")
    rows = edge_attr.unsqueeze(-1) if edge_attr.dim() == 1 else edge_attr
    if rows.dim() != 2 or rows.shape[0] != num_edges or (width > 0 and rows.shape[1] != width):
        expected = f"[{num_edges}, {width if width > 0 else 'F'}]"
        raise ArgumentError(f"{name} must have shape {expected}, one row for each edge, got {list(edge_attr.shape)}")
    return rows


def is_edge_index(value: Any) -> bool:
    """Whether it is ``[2, E]`` and no matrix, boolean mask or graph."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dtype != torch.bool


def asks_for_batch(layer: nn.Module) -> bool:
    """Whether its forward takes ``batch``, the graph of each node."""
    return "batch" in inspect.signature(layer.forward).parameters


def knows_members(edge_index: Any) -> bool:
    """Whether it is a graph that says itself which nodes are one graph."""
    return isinstance(edge_index, TokenGraph) and edge_index.target_ptr is not None
