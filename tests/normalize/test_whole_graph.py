"""Normalisers that look at more than a target's in-edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, attend, edge_weights, patterns
from graphattn.errors import ArgumentError
from graphattn.normalize import Flow, Frobenius, Normalizer, Sum, Symmetric
from graphattn.testing import GRAPH_KINDS, random_graph

F64 = torch.float64
H = 2
RULES = [Frobenius(), Sum(), Symmetric(), Flow()]


def scores_of(graph: TokenGraph) -> Tensor:
    return torch.rand(graph.num_edges, H, dtype=F64, requires_grad=True)


# --- Frobenius --------------------------------------------------------------------------------------------------


def test_frobenius_by_hand() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[2, 0, 1, 4], [0, 0, 2, 3]]), 5, ptr=torch.tensor([0, 3, 5]))
    weights = Frobenius(eps=1e-12)(graph, torch.tensor([[2.0], [3.0], [6.0], [-9.0]], dtype=F64))
    assert weights.flatten().tolist() == pytest.approx([2 / 7, 3 / 7, 6 / 7, -1.0], abs=1e-10)
    one = Frobenius(eps=0.5)(graph, torch.tensor([[2.0], [3.0], [6.0], [4.5]], dtype=F64))
    assert one.flatten().tolist() == pytest.approx([2 / 7.5, 3 / 7.5, 6 / 7.5, 0.9])
    wide = Frobenius(eps=1e-12, rescale=True)(graph, torch.tensor([[2.0], [3.0], [6.0], [-9.0]], dtype=F64))
    root = torch.tensor([3.0, 3.0, 3.0, 2.0], dtype=F64).sqrt()
    torch.testing.assert_close(wide.flatten(), weights.flatten() * root)


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_the_norm_is_below_one_in_every_member(kind: str) -> None:
    """Invariants 1 and 9 of the paper's sheet: norms below 1, and the same as of the dense masked matrix."""
    graph = random_graph(1, kind)
    q, k = torch.randn(2, graph.num_tokens, H, 4, dtype=F64)
    weights = edge_weights(graph, q, k, score="relu_dot", normalizer="frobenius")
    source, target = graph.edge_index
    for member in range(graph.num_members):
        mine = graph.target_batch[target] == member
        scores = ((q[target] * k[source]).sum(-1) / 2)[mine].relu()
        norm = scores.square().sum(0).sqrt()
        torch.testing.assert_close(weights[mine], scores / (norm + 1e-6), rtol=1e-12, atol=1e-14)
        assert (weights[mine].square().sum(0).sqrt() < 1).all()
    if not graph.has_duplicates:
        rows = (q.unsqueeze(1) * k).sum(-1).relu().masked_fill(~graph.to_dense().unsqueeze(-1), 0.0) / 2
        members = [rows[graph.target_batch == m] for m in range(graph.num_members)]
        norms = torch.stack([member.square().sum((0, 1)).sqrt() for member in members])
        expected = rows / (norms[graph.target_batch] + 1e-6).unsqueeze(1)
        torch.testing.assert_close(weights, expected[target, source])


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_scores_that_are_all_zero(rule: Normalizer) -> None:
    """Invariant 10: exactly 0, and finite gradients, for queries, keys and values."""
    graph = random_graph(1, "dense")
    q = -torch.rand(graph.num_tokens, H, 4, dtype=F64) - 0.1
    k, v = torch.rand(2, graph.num_tokens, H, 4, dtype=F64) + 0.1
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    for mover in ("one_hop", "neumann", "katz"):
        out = attend(graph, q, k, v, score="relu_dot", normalizer=rule, propagator=mover)
        assert not out.any()
        for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
            assert gradient.isfinite().all()
    zeros = torch.zeros(graph.num_edges, H, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(rule(graph, zeros).sum(), zeros)
    assert gradient.isfinite().all()


def test_the_scale_of_queries_and_keys_cancels() -> None:
    """Invariant 4."""
    graph = random_graph(1, "batch")
    q, k = torch.randn(2, graph.num_tokens, H, 4, dtype=F64)
    options: dict[str, Any] = {"score": "relu_dot", "normalizer": Frobenius(eps=1e-14)}
    torch.testing.assert_close(
        edge_weights(graph, 3.0 * q, 0.2 * k, **options), edge_weights(graph, q, k, **options), rtol=1e-10, atol=0
    )


# --- sum, symmetric, flow ---------------------------------------------------------------------------------------


def test_sum_by_hand() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[2, 0, 1], [0, 0, 2]]), 3)
    scores = torch.tensor([[3.0], [1.0], [2.0]])
    assert Sum()(graph, scores).flatten().tolist() == [0.75, 0.25, 1.0]
    assert Sum(floor=8.0)(graph, scores).flatten().tolist() == [0.375, 0.125, 0.25]


@pytest.mark.requires("pyg")
def test_symmetric_is_the_norm_of_gcn() -> None:
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    graph = random_graph(0, "sparse").symmetrize()
    weights = torch.rand(graph.num_edges, dtype=F64)
    weights = weights + weights[graph.reverse_edge]
    _, expected = gcn_norm(graph.edge_index, weights, graph.num_tokens, add_self_loops=False, dtype=F64)
    torch.testing.assert_close(Symmetric()(graph, weights.unsqueeze(1)).squeeze(1), expected)


@pytest.mark.parametrize("bipartite", [False, True])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_symmetric_has_no_singular_value_above_one(kind: str, bipartite: bool) -> None:
    graph = random_graph(1, kind, bipartite=bipartite)
    weights = Symmetric()(graph, scores_of(graph))
    matrix = torch.zeros(graph.num_targets, graph.num_sources, H, dtype=F64)
    source, target = graph.edge_index
    matrix = matrix.index_put((target, source), weights, accumulate=True).permute(2, 0, 1)
    assert torch.linalg.matrix_norm(matrix, 2).max() <= 1 + 1e-12


@pytest.mark.parametrize("clamp", [None, 1.0])
def test_flow_is_flowformers_formula(clamp: float | None) -> None:
    """On the complete graph, term by term (Flowformer, eqs. 4-8)."""
    graph = patterns.complete(5, 7)
    scores = torch.rand(5, 7, dtype=F64)
    into, out = scores.sum(1, keepdim=True), scores.sum(0, keepdim=True)
    into_conserved, out_conserved = (scores / out).sum(1, keepdim=True), (scores / into).sum(0, keepdim=True)
    assert float(into_conserved.sum()) == pytest.approx(7) and float(out_conserved.sum()) == pytest.approx(5)
    if clamp is not None:
        out_conserved = out_conserved.clamp(-clamp, clamp)
    competition = 7 * out_conserved.softmax(1)
    expected = (into_conserved * 5 / 7).sigmoid() * scores / into * competition
    got = Flow(clamp=clamp)(graph, scores.reshape(35, 1))
    torch.testing.assert_close(got.reshape(5, 7), expected)


def test_flow_refuses_to_leak() -> None:
    for graph in (patterns.causal(4), patterns.window(4, 2, causal=True), TokenGraph.batch([patterns.causal(4)] * 2)):
        with pytest.raises(ArgumentError, match="'flow' would leak the future on a causal graph"):
            Flow()(graph, torch.ones(graph.num_edges, 1))


# --- members, copies, gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_members_and_copies_are_each_for_itself(rule: Normalizer) -> None:
    """Invariant 9: neither members of a batch nor copies of a graph share a number."""
    graphs = [random_graph(seed, kind, bipartite=True) for seed, kind in enumerate(("dense", "no_edges", "sparse"))]
    scores = [scores_of(graph) for graph in graphs]
    expected = torch.cat([rule(graph, s) for graph, s in zip(graphs, scores, strict=True)])
    batch = TokenGraph.batch(graphs)
    torch.testing.assert_close(rule(batch, torch.cat(scores)), expected)
    again = [s * 2 + 1 for s in scores]
    both = torch.cat([expected, *(rule(graph, s) for graph, s in zip(graphs, again, strict=True))])
    for stacked in (TokenGraph.stack([batch, batch]), TokenGraph.per_head([batch, batch])):
        torch.testing.assert_close(rule(stacked, torch.cat([*scores, *again])), both)
    pair = TokenGraph.stack([graphs[0], graphs[0]])
    torch.testing.assert_close(
        rule(pair, torch.cat([scores[0], again[0]])), torch.cat([rule(graphs[0], scores[0]), rule(graphs[0], again[0])])
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "batch", "empty_rows", "no_edges"])
def test_gradcheck(rule: Normalizer, kind: str) -> None:
    graph = random_graph(2, kind)
    assert torch.autograd.gradcheck(lambda s: rule(graph, s), (scores_of(graph),))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_compiles(rule: Normalizer) -> None:
    for kind in ("dense", "batch"):
        graph = random_graph(0, kind).prepare()
        q = torch.randn(graph.num_tokens, H, 4)

        def run(graph: TokenGraph, q: Tensor) -> Any:
            return attend(graph, q, q, q, score="relu_dot", normalizer=rule)

        torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(graph, q), run(graph, q))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Frobenius(eps=0.0), "eps must be positive, got 0"),
        (lambda: Sum(floor=-1.0), "floor must be positive, got -1"),
        (lambda: Flow(floor=0.0), "floor must be positive, got 0"),
        (lambda: Flow(clamp=0.0), "clamp must be positive or None, got 0"),
    ],
)
def test_bad_arguments(make: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        make()
