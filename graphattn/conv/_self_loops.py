"""Self-loops as PyG's layers add them: those that are there go, then every node gets one, after all other edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn.conv._inputs import Edges, edge_features, is_edge_index, token_graph
from graphattn.conv._pyg import scatter
from graphattn.conv._remembered import remembered
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.check import check_edge_index_form, waits_for_nothing
from graphattn_kernels import segment_sum

__all__ = ["check_fill_value", "edges_with_self_loops"]

_REDUCTIONS = ("add", "sum", "mean", "min", "max", "mul")


def check_fill_value(fill_value: Any) -> None:
    """Raise unless :func:`edges_with_self_loops` takes it."""
    if isinstance(fill_value, str):
        if fill_value not in _REDUCTIONS:
            raise ArgumentError(f"fill_value must be a number, a tensor or one of {_REDUCTIONS}, got {fill_value!r}")
    elif isinstance(fill_value, bool) or not isinstance(fill_value, (int, float, Tensor)):
        raise ArgumentTypeError(
            f"fill_value must be a number, a tensor or one of {_REDUCTIONS}, got {type(fill_value).__name__}"
        )


def edges_with_self_loops(
    edge_index: Any,
    edge_attr: Any,
    num_sources: int,
    num_targets: int,
    flow: str,
    width: int | None,
    fill_value: float | Tensor | str,
    backend: str,
) -> Edges:
    """The edges as they were given, less self-loops, and then a loop at each node that is a source and a target.

    Where sizes may not depend on values (``torch.compile``, ``torch.export``, CUDA graphs), loops that should go stay
    on the list, unread.

    Args:
        edge_index: See :meth:`AttentionConv.forward`.
        edge_attr: ``[E, F]`` or ``None``: see :func:`edge_features`.
        num_sources: Rows of the sources' features.
        num_targets: Rows of the targets' features.
        flow: PyG's ``flow``.
        width: F; below 1: not known yet; ``None``: the layer has no edge features.
        fill_value: Features of the new loops: a number, ``[F]``, or how to reduce those of the edges to the same node.
        backend: See :func:`graphattn.attend`.
    """
    turned = flow == "target_to_source"
    loops = min(num_sources, num_targets)
    given: Tensor | TokenGraph
    if is_edge_index(edge_index) and type(edge_index) is Tensor:
        check_edge_index_form(edge_index)
        given, num_edges = edge_index, edge_index.shape[1]
    else:
        given = graph = token_graph(edge_index, num_sources, num_targets, flow)
        num_edges = graph.num_edges
    attr = edge_features(edge_attr, edge_index, num_edges, width)

    def make() -> tuple[Edges, Tensor | None]:
        if isinstance(given, Tensor):
            listed = given
        else:
            listed = given.edge_index.flip(0) if turned else given.edge_index
        return _add(listed, loops, num_sources, num_targets, turned)

    edges, kept = remembered((given,), ("loops", num_sources, num_targets, turned), make)
    if attr is None:
        return edges
    if kept is not None:
        attr = attr.index_select(0, kept)
    return edges._replace(attr=torch.cat([attr, _loop_rows(edges, attr, loops, turned, fill_value, backend)]))


def _add(
    edge_index: Tensor, loops: int, num_sources: int, num_targets: int, turned: bool
) -> tuple[Edges, Tensor | None]:
    """The new edges, and which of the old ones are among them (``None``: all)."""
    is_loop, kept, unread = edge_index[0] == edge_index[1], None, None
    if _sizes_are_fixed(edge_index):
        unread = torch.cat([is_loop, is_loop.new_zeros(loops)])
    else:
        kept = (~is_loop).nonzero().flatten()
        if kept.shape[0] == edge_index.shape[1]:
            kept = None
        else:
            edge_index = edge_index.index_select(1, kept)
    new = torch.arange(loops, dtype=edge_index.dtype, device=edge_index.device)
    edge_index = torch.cat([edge_index, new.expand(2, -1)], dim=1)
    graph = TokenGraph.from_edge_index(
        edge_index.flip(0) if turned else edge_index, num_targets=num_targets, num_sources=num_sources
    )
    return Edges(graph, None, edge_index, unread), kept


def _loop_rows(
    edges: Edges, attr: Tensor, loops: int, turned: bool, fill_value: float | Tensor | str, backend: str
) -> Tensor:
    """``[loops, F]``: the features of the new loops, from those of the other edges."""
    if isinstance(fill_value, Tensor):
        return fill_value.to(attr).expand(loops, attr.shape[1])
    if not isinstance(fill_value, str):
        return attr.new_full((loops, attr.shape[1]), fill_value)
    # PyG reduces over the second row of edge_index, whatever the flow is.
    at = edges.edge_index[1, : attr.shape[0]]
    nodes = edges.graph.num_sources if turned else edges.graph.num_targets
    counted = None if edges.unread is None else ~edges.unread[: attr.shape[0]]
    if fill_value in ("min", "max", "mul"):
        if counted is not None:  # what does not count goes to a row of its own
            at = torch.where(counted, at, nodes)
        return scatter(attr, at, 0, nodes + 1, fill_value)[:loops]
    if counted is not None:
        attr = torch.where(counted.unsqueeze(1), attr, 0)
    structure = edges.graph.structure.T if turned else edges.graph.structure
    # The loops add nothing to the sum, and one to the degree.
    rows = torch.cat([attr, attr.new_zeros(loops, attr.shape[1])])
    total = segment_sum(structure, rows, backend=backend)[:loops]
    if fill_value != "mean":
        return total
    degree = structure.by_target.ptr.diff()[:loops] - 1
    if counted is not None:
        unread = torch.zeros(nodes + 1, dtype=degree.dtype, device=degree.device)
        unread = unread.index_add(0, torch.where(counted, nodes, at), torch.ones_like(at, dtype=degree.dtype))
        degree = degree - unread[:loops]
    return total / degree.clamp(min=1).to(attr.dtype).unsqueeze(1)


def _sizes_are_fixed(like: Tensor) -> bool:
    return waits_for_nothing(like.device)
