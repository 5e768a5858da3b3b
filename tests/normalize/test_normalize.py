"""Normalisers by themselves."""

from __future__ import annotations

import math

import pytest
import torch

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.normalize import NORMALIZERS, Normalizer, Sigmoid, Softmax, resolve_normalizer
from graphattn.testing import GRAPH_KINDS, assert_backends_equal, random_graph

# Edges 2 -> 0, 0 -> 0, 1 -> 2.
GRAPH = TokenGraph.from_edge_index(torch.tensor([[2, 0, 1], [0, 0, 2]]), 3)
SCORES = torch.tensor([[math.log(3)], [0.0], [-7.0]])


def test_softmax_by_hand() -> None:
    torch.testing.assert_close(Softmax()(GRAPH, SCORES), torch.tensor([[0.75], [0.25], [1.0]]))


def test_sigmoid_by_hand() -> None:
    torch.testing.assert_close(Sigmoid()(GRAPH, SCORES), torch.tensor([[0.75], [0.5], [1 / (1 + math.exp(7))]]))


@pytest.mark.parametrize("name", NORMALIZERS.names())
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_every_normaliser_of_the_table(name: str, kind: str) -> None:
    """Backends agree in value and gradient, and weights follow their edges."""
    graph, rule = random_graph(1, kind), resolve_normalizer(name)
    if name == "mutual":  # two edges agree, so that each needs its reverse, and only one
        pairs = graph.symmetrize().edge_index.unique(dim=1)
        graph = TokenGraph.from_edge_index(pairs, graph.num_tokens, ptr=graph.target_ptr)
    scores = torch.randn(graph.num_edges, 2, dtype=torch.float64)
    assert_backends_equal(lambda s, backend: rule(graph, s, backend), scores)
    order = torch.randperm(graph.num_edges)
    moved = TokenGraph.from_edge_index(graph.edge_index[:, order], graph.num_tokens, ptr=graph.target_ptr)
    torch.testing.assert_close(rule(moved, scores[order]), rule(graph, scores)[order])


def test_resolve() -> None:
    rule = Softmax()
    assert resolve_normalizer(rule) is rule
    assert isinstance(resolve_normalizer("softmax"), Softmax) and issubclass(Softmax, Normalizer)
    with pytest.raises(ArgumentError, match="unknown normalizer 'softmx'; did you mean 'softmax'"):
        resolve_normalizer("softmx")
    with pytest.raises(ArgumentTypeError, match="normalizer must be a name or a Normalizer, got NoneType"):
        resolve_normalizer(None)  # type: ignore[arg-type]
