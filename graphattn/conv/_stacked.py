"""All relations of a heterogeneous graph as one token graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.conv._inputs import is_edge_index, token_graph
from graphattn.conv._remembered import remembered
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.check import check_edge_index

__all__ = ["Place", "Relation", "stacked_graph", "stacked_places"]

Relation = tuple[str, str, str]


class Place(NamedTuple):
    """Where tokens of a relation stand in the stack: token ``n`` of its nodes at ``begin + n * step``.

    The tokens of one node type stand node by node, for each node one token for each of its relations: the rows
    ``[nodes, relations, ...]`` of a matrix product as they are.
    """

    begin: int
    step: int


def stacked_places(
    relations: Iterable[Relation], sizes: Mapping[str, int], end: int, *, each: bool
) -> tuple[dict[Relation, Place], dict[str, list[Relation]], int]:
    """Places for one end of all relations.

    Args:
        relations: (source type, name, target type).
        sizes: Number of nodes of each type.
        end: 0 for sources, 2 for targets.
        each: A token for each node and relation; else one for each node.

    Returns:
        The place of each relation; the relations of each node type, in the order of their tokens; and the number of
        tokens.
    """
    by_type: dict[str, list[Relation]] = {kind: [] for kind in sizes}
    for relation in relations:
        by_type[relation[end]].append(relation)
    places, total = {}, 0
    for kind, own in by_type.items():
        step = len(own) if each else 1
        for number, relation in enumerate(own):
            places[relation] = Place(total + (number if each else 0), step)
        total += sizes[kind] * step
    return places, by_type, total


def stacked_graph(
    edges: Mapping[Relation, Any],
    sizes: Mapping[str, int],
    sources: tuple[dict[Relation, Place], int],
    targets: tuple[dict[Relation, Place], int],
) -> TokenGraph:
    """The token graph of all relations, their edges one relation after another; the same for the same edges.

    Args:
        edges: What :func:`~graphattn.conv._inputs.token_graph` takes, by relation.
        sizes: Number of nodes of each type.
        sources: Places of the relations, and the number of tokens.
        targets: The same at the other end.
    """

    def make() -> TokenGraph:
        stacked = []
        for relation, given in edges.items():
            source, target = _edge_index(relation, given, sizes)
            at_source, at_target = sources[0][relation], targets[0][relation]
            stacked.append(
                torch.stack([source * at_source.step + at_source.begin, target * at_target.step + at_target.begin])
            )
        return TokenGraph.from_edge_index(
            torch.cat(stacked, dim=1), num_sources=sources[1], num_targets=targets[1], validate=False
        )

    layout = tuple((sources[0][r], targets[0][r], sizes[r[0]], sizes[r[2]]) for r in edges)
    return remembered(tuple(edges.values()), ("relations", layout, sources[1], targets[1]), make)


def _edge_index(relation: Relation, given: Any, sizes: Mapping[str, int]) -> Tensor:
    """int64 ``[2, E]``, checked against the relation's own nodes: in the stack, others follow."""
    num_sources, num_targets = sizes[relation[0]], sizes[relation[2]]
    try:
        if is_edge_index(given):
            check_edge_index(given, num_targets, num_sources)
            return given.long()
        return token_graph(given, num_sources, num_targets, "source_to_target").edge_index
    except (ArgumentError, ArgumentTypeError) as error:
        raise type(error)(f"edge_index_dict[{relation}]: {error}") from None
