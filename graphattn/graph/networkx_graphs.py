"""Token graphs from and to NetworkX, and the attributes of its nodes and edges as tensors.

NetworkX is told by the looks of its graphs and imported only to make one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.token_graph import TokenGraph
from graphattn.optional import require

__all__ = ["NetworkxAttributes", "from_networkx", "networkx_attributes", "to_networkx"]

Column = Tensor | Sequence[Any]
"""What tokens or edges have under one name: a tensor ``[N, ...]``, or a list with ``None`` for what has none."""


class NetworkxAttributes(NamedTuple):
    """What a NetworkX graph knows beside who is joined to whom, in the order of its token graph."""

    nodes: list[Hashable]
    """The label of each token."""
    node_attributes: dict[Any, Column]
    """By name: ``[N, ...]`` where the attribute is numeric, else a list."""
    edge_attributes: dict[Any, Column]
    """By name: ``[E, ...]`` where the attribute is numeric, else a list."""
    edge_keys: list[Hashable] | None
    """The key of each edge of a multigraph, else ``None``."""


def from_networkx(graph: Any) -> TokenGraph:
    """The graph of a NetworkX (di)graph or multi(di)graph; :func:`networkx_attributes` reads the rest of it.

    Tokens are numbered as in ``graph.nodes``, edges as in ``graph.edges``; undirected edges count both ways (self-loops
    once), as in ``graph.to_directed().edges``.

    Raises:
        ArgumentTypeError: If it is no NetworkX graph.
    """
    rows = _adjacency(graph)
    number = {node: index for index, node in enumerate(graph)}
    if graph.is_multigraph():
        degree = [sum(map(len, row.values())) for row in rows]
        targets = chain.from_iterable(repeat(target, len(keys)) for row in rows for target, keys in row.items())
    else:
        degree = [len(row) for row in rows]
        targets = chain.from_iterable(rows)
    target = np.fromiter(map(number.__getitem__, targets), np.int64, sum(degree))
    source = np.repeat(np.arange(len(number)), np.array(degree, dtype=np.int64))
    return TokenGraph.from_edge_index(torch.from_numpy(np.stack([source, target])), len(number))


def networkx_attributes(graph: Any, dtype: torch.dtype | None = None) -> NetworkxAttributes:
    """Labels and attributes of a NetworkX graph, in the order of :func:`from_networkx`.

    An attribute becomes a tensor if every node (or edge) has it and all values are numbers, or arrays of numbers of one
    shape. ``TokenGraph.from_networkx(graph).to_networkx(**networkx_attributes(graph)._asdict(), create_using=...)``
    is the graph again.

    Args:
        graph: The NetworkX graph.
        dtype: Of Python's floats; default: PyTorch's default dtype, which has fewer digits than they have. Arrays and
            tensors keep their own.

    Raises:
        ArgumentTypeError: If it is no NetworkX graph.
    """
    rows = _adjacency(graph)
    keys: list[Hashable] | None = None
    edges: Iterator[Mapping[Any, Any]] = chain.from_iterable(row.values() for row in rows)
    if graph.is_multigraph():
        keys = [key for row in rows for edges_by_key in row.values() for key in edges_by_key]
        edges = (edge for edges_by_key in edges for edge in edges_by_key.values())
    nodes = (attributes for _, attributes in graph.nodes(data=True))
    return NetworkxAttributes(list(graph), _columns(nodes, dtype), _columns(edges, dtype), keys)


def to_networkx(
    graph: TokenGraph,
    *,
    nodes: Sequence[Hashable] | None = None,
    node_attributes: Mapping[Any, Column] | None = None,
    edge_attributes: Mapping[Any, Column] | None = None,
    edge_keys: Sequence[Hashable] | None = None,
    create_using: Any = None,
) -> Any:
    """A NetworkX graph.

    Args:
        graph: Square, without leading dimensions. The members of a batch are not marked.
        nodes: The label of each token; default: ``0..N - 1``.
        node_attributes: By name, ``[N, ...]`` or a list of N; entries that are ``None`` are left out.
        edge_attributes: By name, ``[E, ...]`` or a list of E in the caller's order; likewise.
        edge_keys: The key of each edge, for a multigraph.
        create_using: What to make, as in NetworkX: a class or a graph to be cleared and filled; default:
            ``MultiDiGraph``. An undirected graph needs every edge in both directions, with the same attributes.

    Raises:
        ArgumentError: If a length does not fit, or the graph cannot be what ``create_using`` says without loss.
        MissingPackageError: If NetworkX is missing.
    """
    networkx = require("networkx", extra="nx")
    graph._need_square("to_networkx")
    if graph.leading:
        raise ArgumentError(f"to_networkx needs a graph without leading dimensions, got {list(graph.leading)}")
    out = networkx.empty_graph(0, create_using, default=networkx.MultiDiGraph)
    if not out.is_multigraph() and (edge_keys is not None or graph.has_duplicates):
        what = "edge_keys" if edge_keys is not None else "edges that are there more than once"
        raise ArgumentError(f"create_using must be a multigraph for {what}, got {type(out).__name__}")
    labels = range(graph.num_tokens) if nodes is None else _of_length("nodes", nodes, graph.num_tokens)
    if len(set(labels)) != len(labels):
        raise ArgumentError("nodes must be different labels, got some more than once")
    node_columns = _lists("node_attributes", node_attributes, graph.num_tokens)
    edge_columns = _lists("edge_attributes", edge_attributes, graph.num_edges)
    keys = None if edge_keys is None else _of_length("edge_keys", edge_keys, graph.num_edges)

    source, target = graph.edge_index
    if out.is_directed():
        chosen: Sequence[int] = range(graph.num_edges)
    else:
        chosen = _one_way(graph, {**edge_columns, **({} if keys is None else {"edge_keys": keys})})
    sources, targets = source.tolist(), target.tolist()
    out.add_nodes_from(zip(labels, _entries(node_columns, range(len(labels))), strict=True))
    ends = ((labels[sources[edge]], labels[targets[edge]]) for edge in chosen)
    entries = _entries(edge_columns, chosen)
    if keys is None:
        out.add_edges_from((*pair, entry) for pair, entry in zip(ends, entries, strict=True))
    else:
        names = (keys[edge] for edge in chosen)
        out.add_edges_from((*pair, key, entry) for pair, key, entry in zip(ends, names, entries, strict=True))
        if out.number_of_edges() != len(chosen):
            raise ArgumentError("edge_keys must differ among the edges from one node to another")
    return out


def _adjacency(graph: Any) -> list[Mapping[Any, Any]]:
    """For each node, what NetworkX keeps of its out-neighbours."""
    if not (hasattr(graph, "adjacency") and hasattr(graph, "is_multigraph")):
        raise ArgumentTypeError(f"graph must be a NetworkX graph, got {type(graph).__name__}")
    return [row for _, row in graph.adjacency()]


def _columns(entries: Iterable[Mapping[Any, Any]], dtype: torch.dtype | None) -> dict[Any, Column]:
    """Attributes by name, from those of each node or edge."""
    entries = list(entries)
    names = dict.fromkeys(chain.from_iterable(entries))  # a set in the order of first appearance
    return {name: _column([entry.get(name) for entry in entries], dtype) for name in names}


def _column(values: list[Any], dtype: torch.dtype | None) -> Column:
    kinds = set(map(type, values))
    try:
        if all(issubclass(kind, Tensor) for kind in kinds):
            return torch.stack(values)
        if all(issubclass(kind, (np.ndarray, np.generic)) for kind in kinds):
            return torch.from_numpy(np.stack(values)) if len(kinds) == 1 else values
        # A bool among numbers would become one of them.
        numbers = bool not in kinds and all(issubclass(kind, Number) for kind in kinds)
        if numbers or kinds == {bool} or kinds <= {list, tuple}:
            return _tensor(values, dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass  # not numbers, rows of several lengths, or an integer too large
    return values


def _tensor(values: list[Any], dtype: torch.dtype | None) -> Tensor:
    column = torch.tensor(values)
    # Made anew, because the default dtype has lost digits already.
    return torch.tensor(values, dtype=dtype) if dtype is not None and column.is_floating_point() else column


def _lists(name: str, columns: Mapping[Any, Column] | None, size: int) -> dict[Any, Sequence[Any]]:
    return {key: _of_length(f"{name}[{key!r}]", column, size) for key, column in (columns or {}).items()}


def _of_length(name: str, column: Column, size: int) -> Sequence[Any]:
    if len(column) != size:
        raise ArgumentError(f"{name} must have {size} entries, got {len(column)}")
    return column.tolist() if isinstance(column, Tensor) else column


def _entries(columns: Mapping[Any, Sequence[Any]], chosen: Iterable[int]) -> Iterator[dict[Any, Any]]:
    """The attributes of each chosen node or edge."""
    for index in chosen:
        yield {name: column[index] for name, column in columns.items() if column[index] is not None}


def _one_way(graph: TokenGraph, columns: Mapping[Any, Sequence[Any]]) -> list[int]:
    """One of the two directions of every edge, and of self-loops all; raise where the two differ in attributes."""
    if not graph.is_symmetric:
        raise ArgumentError("create_using must be directed for a graph that has edges without their reverse")
    reverse = graph.reverse_edge.tolist()
    source, target = graph.edge_index
    chosen: list[int] = (source <= target).nonzero().flatten().tolist()
    for name, column in columns.items():
        for edge in chosen:
            if not _same(column[edge], column[reverse[edge]]):
                raise ArgumentError(
                    "create_using must be directed where the two directions of an edge differ: "
                    f"{name!r} of {int(source[edge])} -> {int(target[edge])} is {column[edge]!r}, the other way "
                    f"{column[reverse[edge]]!r}"
                )
    return chosen


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    try:
        return bool(first == second) or np.array_equal(first, second, equal_nan=True)
    except (TypeError, ValueError, RuntimeError):  # the truth of an array, NaN of something that is no number
        return np.array_equal(first, second)
