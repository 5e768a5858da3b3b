"""The dot product without its negative half."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn import attend, edge_weights
from graphattn.score import DotScore, ReluDotScore
from graphattn.testing import check_score, random_graph


def test_on_every_graph() -> None:
    check_score(ReluDotScore())
    check_score(ReluDotScore(), edge_channels=4)


def test_value() -> None:
    graph = random_graph(1, "hub")
    q, k, v = torch.randn(3, graph.num_tokens, 2, 4, dtype=torch.float64)
    gate = torch.randn(graph.num_edges, 2, 4, dtype=torch.float64)
    source, target = graph.edge_index
    for factor in (None, gate):
        product = q[target] * k[source]
        scores = (product if factor is None else product * factor).sum(-1).relu() / 2
        got = attend(graph, q, k, v, score="relu_dot", normalizer="sigmoid", edge_gate=factor)
        torch.testing.assert_close(got, attend(graph, None, None, v, score=scores, normalizer="sigmoid"))
        bias = torch.randn(graph.num_edges, dtype=torch.float64)
        options = {"score": "relu_dot", "edge_gate": factor, "edge_bias": bias, "scale": 3.0}
        got = edge_weights(graph, q, k, **options)  # type: ignore[arg-type]
        expected = edge_weights(graph, None, None, score=6 * scores, edge_bias=bias)
        torch.testing.assert_close(got, expected)  # the bias is not cut off


def test_nothing_of_the_size_of_edges_times_channels_is_made() -> None:
    graph = random_graph(1, "dense")
    q = torch.randn(graph.num_tokens, 1, 50, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        edge_weights(graph, q, q, score="relu_dot")
    assert max(sizes) < 50 * graph.num_edges


def test_a_class_with_another_formula_is_computed_edge_by_edge() -> None:
    class Half(ReluDotScore):
        def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
            return super().edge(q_target, k_source, edge) / 2

    class Named(DotScore):
        """Nothing changed."""

    assert not Half.of_product and Named.of_product
    graph = random_graph(1, "dense")
    q, k, v = torch.randn(3, graph.num_tokens, 2, 4)
    torch.testing.assert_close(
        attend(graph, q, k, v, score=Half()), attend(graph, q, k, v, score="relu_dot", scale=0.25)
    )
