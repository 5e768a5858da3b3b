"""Weights, lse, merge, edge_weights and propagate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.attention import AttentionOutput, attend, edge_weights, merge, propagate
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.testing import random_graph
from graphattn_kernels import segment_sum

Draw = Callable[..., Tensor]
H, D, D_V = 2, 4, 3


def inputs(graph: TokenGraph, draw: Draw) -> list[Tensor]:
    return [draw(graph.num_targets, H, D), draw(graph.num_sources, H, D), draw(graph.num_sources, H, D_V)]


def test_weights_sum_to_one_in_the_callers_order(graph: TokenGraph, draw: Draw) -> None:
    q, k, v = inputs(graph, draw)
    out, weights, *_ = attend(graph, q, k, v, need_weights=True)
    assert weights.shape == (graph.num_edges, H) and (weights >= 0).all()
    source, target = graph.edge_index
    total = torch.zeros(graph.num_targets, H, dtype=q.dtype).index_add(0, target, weights)
    torch.testing.assert_close(total, (graph.in_degree > 0).to(q.dtype).unsqueeze(1).expand_as(total))
    again = torch.zeros_like(out).index_add(0, target, weights.unsqueeze(-1) * v[source])
    torch.testing.assert_close(out, again)


def test_weights_are_those_before_dropout(draw: Draw) -> None:
    graph = random_graph(1, "dense")
    q, k, v = inputs(graph, draw)
    dropped = attend(graph, q, k, v, need_weights=True, dropout_p=0.5, dropout_seed=torch.tensor([1, 2]))
    plain = attend(graph, q, k, v, need_weights=True)
    torch.testing.assert_close(dropped.weights, plain.weights)
    assert not torch.allclose(dropped.out, plain.out)


def test_the_gradient_of_the_weights(draw: Draw) -> None:
    graph = random_graph(1, "empty_rows")
    q, k, v = (x.requires_grad_() for x in inputs(graph, draw))
    assert torch.autograd.gradcheck(lambda q, k: attend(graph, q, k, v, need_weights=True).weights, (q, k))


def test_lse_is_the_log_of_the_sum(graph: TokenGraph, draw: Draw) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(graph, draw))
    lse = attend(graph, q, k, v, need_lse=True, scale=1.0).lse
    source, target = graph.edge_index
    total = torch.zeros(graph.num_targets, H, dtype=q.dtype).index_add(0, target, (q[target] * k[source]).sum(-1).exp())
    torch.testing.assert_close(lse, total.log())
    some = graph.in_degree > 0
    got = torch.autograd.grad(lse[some].sum(), (q, k))
    expected = torch.autograd.grad(total[some].log().sum(), (q, k))
    torch.testing.assert_close(got, expected)


def _parts(graph: TokenGraph, owner: Tensor, parts: int) -> list[tuple[TokenGraph, Tensor]]:
    def part(n: int) -> tuple[TokenGraph, Tensor]:
        mine = owner == n
        return TokenGraph.from_edge_index(
            graph.edge_index[:, mine], num_targets=graph.num_targets, num_sources=graph.num_sources
        ), mine

    return [part(n) for n in range(parts)]


def test_merge_over_disjoint_edges_is_attention_over_their_union(graph: TokenGraph, draw: Draw) -> None:
    """Three parts, of which some rows, and the last part as a whole, are empty."""
    leaves = [x.requires_grad_() for x in [*inputs(graph, draw), draw(graph.num_edges, H)]]
    q, k, v, bias = leaves
    owner = torch.randint(0, 2, (graph.num_edges,), generator=torch.Generator().manual_seed(0))
    parts = [
        attend(part, q, k, v, edge_bias=bias[mine], clamp=2.0, need_lse=True) for part, mine in _parts(graph, owner, 3)
    ]
    whole = attend(graph, q, k, v, edge_bias=bias, clamp=2.0, need_lse=True)
    merged = merge(parts)
    torch.testing.assert_close((merged.out, merged.lse), (whole.out, whole.lse))
    assert (merged.out[graph.in_degree == 0] == 0).all()
    slopes = [draw(*whole.out.shape), draw(*whole.lse.shape)]
    got = torch.autograd.grad((merged.out, merged.lse), leaves, slopes)
    expected = torch.autograd.grad((whole.out, whole.lse), leaves, slopes)
    torch.testing.assert_close(got, expected)


def test_merge_of_merges_and_of_one() -> None:
    graph = random_graph(1, "dense")
    x = torch.randn(graph.num_tokens, H, D, dtype=torch.float64)
    parts = [attend(part, x, x, x, need_lse=True) for part, _ in _parts(graph, torch.arange(graph.num_edges) % 3, 3)]
    at_once = merge(parts)
    in_turn = merge([merge(parts[:2]), (parts[2].out, parts[2].lse)])
    torch.testing.assert_close(in_turn.out, at_once.out)
    torch.testing.assert_close(in_turn.lse, at_once.lse)
    torch.testing.assert_close(merge(parts[:1]).out, parts[0].out)


def test_merge_keeps_the_dtype_and_survives_large_scores() -> None:
    out, lse = torch.ones(2, 1, 3, dtype=torch.bfloat16), torch.tensor([[1e4], [-1e4]])
    merged = merge([(out, lse), (3 * out, lse + math.log(3))])
    assert merged.out.dtype == torch.bfloat16
    torch.testing.assert_close(merged.out.float(), torch.full((2, 1, 3), 2.5))
    torch.testing.assert_close(merged.lse, lse + math.log(4))


def test_merge_refuses_what_it_cannot_merge() -> None:
    pair = torch.zeros(2, 1, 3), torch.zeros(2, 1)
    with pytest.raises(ArgumentError, match="at least one"):
        merge([])
    with pytest.raises(ArgumentError, match="need_lse=True"):
        merge([AttentionOutput(pair[0])])
    with pytest.raises(ArgumentError, match="parts must have one shape.*\\[4, 1, 3\\], \\[4, 1\\]"):
        merge([pair, (torch.zeros(4, 1, 3), torch.zeros(4, 1))])


def test_edge_weights_and_propagate_are_the_halves_of_attend(graph: TokenGraph, draw: Draw) -> None:
    q, k, v = inputs(graph, draw)
    bias = draw(graph.num_edges)
    weights = edge_weights(graph, q, k, edge_bias=bias, clamp=1.0)
    torch.testing.assert_close(propagate(graph, weights, v), attend(graph, q, k, v, edge_bias=bias, clamp=1.0))
    expected = attend(graph, q, k, v, edge_bias=bias, clamp=1.0, need_weights=True).weights
    torch.testing.assert_close(weights, expected)


def test_propagate_with_one_weight_for_all_heads(draw: Draw) -> None:
    graph = random_graph(1, "hub")
    weights, v = draw(graph.num_edges), draw(graph.num_tokens, H, D_V)
    expected = segment_sum(graph.structure, weights[:, None, None] * v[graph.edge_index[0]])
    torch.testing.assert_close(propagate(graph, weights, v), expected)


def test_edge_weights_of_a_ready_score(draw: Draw) -> None:
    graph = random_graph(1, "hub")
    score = draw(graph.num_edges, H)
    got = edge_weights(graph, None, None, score=score)
    q = k = torch.zeros(graph.num_tokens, H, 1, dtype=score.dtype)
    torch.testing.assert_close(got, edge_weights(graph, q, k, edge_bias=score))
    torch.testing.assert_close(edge_weights(graph, None, None, score=score[:, 0]), got[:, :1])
    sigmoid = edge_weights(graph, None, None, score=score, normalizer="sigmoid")
    torch.testing.assert_close(sigmoid, score.sigmoid())
