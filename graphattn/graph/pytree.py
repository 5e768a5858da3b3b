"""Graphs as pytrees, and on the list of what ``torch.load(weights_only=True)`` may make.

Their leaves are the tensors that are there, whatever the kind of graph.

So ``tree_map(lambda t: t.to(device), graph)`` meets tensors only, and ``torch.export`` takes graphs as
inputs (with sizes fixed: they are part of the tree's structure).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree

from graphattn.graph.csr import Csc, Csr

if TYPE_CHECKING:
    from graphattn.graph.token_graph import TokenGraph

__all__ = ["register"]

_RECORDS: dict[str, Any] = {"_csr": Csr, "_csc": Csc}
# Where each leaf belongs (attribute, position in its record), then the values of the static attributes.
_Context = tuple[tuple[tuple[str, int], ...], tuple[Any, ...]]


def register(kind: type[TokenGraph]) -> None:
    """Make a class of graphs a pytree, from its ``_tensor_fields`` and ``_static_fields``.

    Graphs hold tensors and plain values, so loading one runs no code of the file's making.
    """
    torch.serialization.add_safe_globals([kind, Csr, Csc])
    _pytree.register_pytree_node(
        kind,
        _flatten,
        lambda leaves, context: _unflatten(kind, leaves, context),
        serialized_type_name=f"graphattn.{kind.__name__}",
        to_dumpable_context=json.dumps,
        from_dumpable_context=_context_from_json,
        flatten_with_keys_fn=_flatten_with_keys,
    )


def _flatten(graph: TokenGraph) -> tuple[list[Any], _Context]:
    leaves, places = [], []
    for name in graph._tensor_fields:
        value = getattr(graph, name)
        for position, part in enumerate(value if name in _RECORDS and value is not None else (value,)):
            if part is not None:
                leaves.append(part)
                places.append((name, position))
    return leaves, (tuple(places), tuple(getattr(graph, name) for name in graph._static_fields))


def _flatten_with_keys(graph: TokenGraph) -> tuple[list[Any], _Context]:
    leaves, context = _flatten(graph)
    names = [f"{name}_{_RECORDS[name]._fields[at]}" if name in _RECORDS else name for name, at in context[0]]
    return [(_pytree.GetAttrKey(name), leaf) for name, leaf in zip(names, leaves, strict=True)], context


def _unflatten(kind: type[TokenGraph], leaves: Any, context: _Context) -> TokenGraph:
    places, static = context
    graph = kind.__new__(kind)
    graph._structure = None  # follows from the others
    for name in kind._tensor_fields:
        setattr(graph, name, None)
    for name, value in zip(kind._static_fields, static, strict=True):
        setattr(graph, name, value)
    records: dict[str, dict[int, Any]] = {}
    for (name, position), leaf in zip(places, leaves, strict=True):
        if name in _RECORDS:
            records.setdefault(name, {})[position] = leaf
        else:
            setattr(graph, name, leaf)
    for name, parts in records.items():
        setattr(graph, name, _RECORDS[name](*(parts.get(at) for at in range(3))))
    return graph


def _context_from_json(context: str) -> _Context:
    places, static = json.loads(context)
    return (
        tuple((name, position) for name, position in places),
        tuple(tuple(value) if isinstance(value, list) else value for value in static),
    )
