from __future__ import annotations

import pytest
import torch

from graphattn.encoding import degree_encoding
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

GRAPH = TokenGraph.from_edge_index(torch.tensor([[0, 0, 0, 1, 3], [1, 1, 2, 2, 3]]), 5)


def test_both_directions_and_the_limit():
    assert degree_encoding(GRAPH).tolist() == [0, 2, 2, 1, 0]
    assert degree_encoding(GRAPH, direction="out").tolist() == [3, 1, 0, 1, 0]
    both = degree_encoding(GRAPH, direction="both", max_degree=1)
    assert both.tolist() == [[0, 1], [1, 1], [1, 0], [1, 1], [0, 0]]
    assert both.dtype == torch.int64


def test_bad_input():
    with pytest.raises(ArgumentError, match="direction must be one of"):
        degree_encoding(GRAPH, direction="row")
    with pytest.raises(ArgumentError, match="max_degree must be at least 0, got -1"):
        degree_encoding(GRAPH, max_degree=-1)
