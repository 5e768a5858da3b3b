"""Centralities against NetworkX, dense algebra and counting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, patterns
from graphattn.insight import centrality, eigenvector, expected_visits, katz, leak, pagerank
from graphattn.testing import random_graph
from graphattn_kernels import backends


@pytest.fixture(autouse=True)
def _gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)


@pytest.fixture
def weighted() -> tuple[TokenGraph, Tensor]:
    """25 tokens, one of which reads nobody and one of which nobody reads; edges in no order."""
    mask = torch.rand(25, 25) < 0.25
    mask[3], mask[:, 7] = False, False
    source, target = mask.nonzero().T.flip(0)
    order = torch.randperm(len(source))
    graph = TokenGraph.from_edge_index(torch.stack([source, target])[:, order], 25)
    return graph, torch.rand(graph.num_edges, dtype=torch.float64)


def dense(graph: TokenGraph, weights: Tensor) -> Tensor:
    """A[target, source]."""
    matrix = torch.zeros(graph.num_tokens, graph.num_tokens, dtype=torch.float64)
    source, target = graph.edge_index.long()
    return matrix.index_put((target, source), weights.double(), accumulate=True)


def network(graph: TokenGraph, weights: Tensor, of: str):
    """NetworkX's graph: from the reader to what it reads for ``"sources"``, along the edges for ``"targets"``."""
    networkx = pytest.importorskip("networkx")
    drawn = networkx.DiGraph()
    drawn.add_nodes_from(range(graph.num_tokens))
    for (source, target), weight in zip(graph.edge_index.T.tolist(), weights.tolist(), strict=True):
        drawn.add_edge(*((target, source) if of == "sources" else (source, target)), weight=weight)
    return drawn


def listed(values: dict[int, float]) -> Tensor:
    return torch.tensor([values[n] for n in range(len(values))], dtype=torch.float64)


@pytest.mark.parametrize("of", ["sources", "targets"])
def test_networkx_agrees(weighted: tuple[TokenGraph, Tensor], of: str) -> None:
    networkx = pytest.importorskip("networkx")
    graph, weights = weighted
    drawn = network(graph, weights, of)
    close = {"rtol": 0, "atol": 1e-8}
    for normalized in (True, False):
        expected = networkx.katz_centrality(
            drawn, 0.15, 2.0, tol=1e-13, max_iter=10_000, weight="weight", normalized=normalized
        )
        got = katz(graph, weights, 0.15, 2.0, of=of, normalized=normalized)
        torch.testing.assert_close(got, listed(expected), **close)
    expected = networkx.eigenvector_centrality(drawn, max_iter=10_000, tol=1e-13, weight="weight")
    torch.testing.assert_close(eigenvector(graph, weights, of=of), listed(expected), **close)


@pytest.mark.parametrize("alpha", [0.85, 0.3])
def test_networkx_agrees_on_pagerank(weighted: tuple[TokenGraph, Tensor], alpha: float) -> None:
    networkx = pytest.importorskip("networkx")
    graph, weights = weighted  # token 3 reads nobody: a dangling node
    drawn, personal = network(graph, weights, "sources"), torch.rand(25, dtype=torch.float64)
    for start in (None, personal):
        given = None if start is None else dict(enumerate(start.tolist()))
        expected = networkx.pagerank(drawn, alpha, personalization=given, tol=1e-13, max_iter=10_000)
        got = pagerank(graph, weights, alpha, start)
        torch.testing.assert_close(got, listed(expected), rtol=0, atol=1e-8)


def test_the_row_sums_of_the_paper(weighted: tuple[TokenGraph, Tensor]) -> None:
    """Its centrality is ((I - gamma A)^-1 1) - 1, a row sum: Katz's index of the targets less one."""
    graph, weights = weighted
    matrix = dense(graph, weights)
    weights, matrix = weights / matrix.norm(), matrix / matrix.norm()
    resolvent = torch.linalg.inv(torch.eye(25, dtype=torch.float64) - 0.95 * matrix)
    got = katz(graph, weights, 0.95, of="targets", normalized=False)
    torch.testing.assert_close(got, resolvent.sum(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(expected_visits(graph, weights), resolvent.mean(0), rtol=1e-10, atol=1e-10)
    start = torch.zeros(25)
    start[4] = 1
    torch.testing.assert_close(expected_visits(graph, weights, start=start), resolvent[4], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(leak(graph, weights), 1 - 0.95 * matrix.sum(1))


def test_expected_visits_are_what_a_walk_does() -> None:
    """A walk on three tokens, simulated."""
    graph = TokenGraph.from_edge_index(torch.tensor([[1, 2, 0], [0, 1, 1]]), 3)  # 0 reads 1; 1 reads 2 and 0
    weights = torch.tensor([1.0, 0.75, 0.25], dtype=torch.float64)
    assert leak(graph, weights, 0.8).tolist() == pytest.approx([0.2, 0.2, 1.0])
    step = torch.zeros(3, 4)  # the last state absorbs
    step[:, :3] = 0.8 * dense(graph, weights)
    step[:, 3] = 1 - step[:, :3].sum(1)
    count, at = torch.zeros(3), torch.zeros(40_000, dtype=torch.long)
    while (at < 3).any():
        at = at[at < 3]
        count += at.bincount(minlength=3)
        at = torch.multinomial(step[at], 1).squeeze(1)
    got = expected_visits(graph, weights, 0.8, torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(got, (count / 40_000).double(), rtol=0.03, atol=0)


def test_heads_leading_dimensions_and_members_stay_apart() -> None:
    graphs = [random_graph(seed, "dense") for seed in (1, 2)]
    batch = TokenGraph.batch(graphs)
    weights = torch.rand(2, batch.num_edges, 3)
    first = graphs[0].num_edges
    calls = (
        lambda g, w: katz(g, w, 0.01),
        pagerank,
        eigenvector,
        lambda g, w: expected_visits(g, w, 0.01),
        lambda g, w: leak(g, w),
    )
    for call in calls:
        got = call(batch, weights)
        assert got.shape == (2, batch.num_tokens, 3) and got.dtype == torch.float32
        alone = [call(graphs[0], weights[1, :first, 2]), call(graphs[1], weights[1, first:, 2])]
        torch.testing.assert_close(got[1, :, 2], torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_patterns_keep_their_edge_order() -> None:
    """Transposing a pattern reorders its edges; the weights must not follow."""
    pattern = patterns.window(9, 2, causal=True)
    explicit = TokenGraph.from_edge_index(pattern.edge_index.long(), 9)
    weights = torch.rand(pattern.num_edges, dtype=torch.float64)
    for of in ("sources", "targets"):
        torch.testing.assert_close(katz(pattern, weights, of=of), katz(explicit, weights, of=of))
    torch.testing.assert_close(pagerank(pattern, weights), pagerank(explicit, weights))


def test_rank_one_weights_have_the_factors_as_vectors() -> None:
    """Invariant 7: of A = u v^T the left vector is v and the right one u."""
    u, v = torch.rand(2, 12, dtype=torch.float64)
    graph = patterns.complete(12)
    weights = torch.outer(u, v).flatten()
    torch.testing.assert_close(eigenvector(graph, weights), v / v.norm())
    torch.testing.assert_close(eigenvector(graph, weights, of="targets"), u / u.norm())
    scaled = weights / (u.norm() * v.norm())
    found = katz(graph, scaled, 0.9, of="targets", normalized=False) - 1
    torch.testing.assert_close(found / found.norm(), u / u.norm())


def test_a_periodic_graph_and_one_without_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = TokenGraph.from_edge_index(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), 4)
    torch.testing.assert_close(eigenvector(ring, torch.full((4,), 3.0)), torch.full((4,), 0.5))
    chain = TokenGraph.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
    assert not eigenvector(chain, torch.ones(3)).any()  # nilpotent
    monkeypatch.setattr(centrality, "_DENSE", 0)
    torch.testing.assert_close(eigenvector(ring, torch.full((4,), 3.0)), torch.full((4,), 0.5))
    graph = random_graph(1, "dense")
    with pytest.warns(RuntimeWarning, match="a residual of .* after 2 products"):
        eigenvector(graph, torch.rand(graph.num_edges), max_products=2)


@pytest.mark.parametrize("of", ["sources", "targets"])
def test_squaring_and_stepping_agree(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(2, "hub")
    weights = torch.rand(graph.num_edges, 3, dtype=torch.float64)
    squared = eigenvector(graph, weights, of=of)
    monkeypatch.setattr(centrality, "_DENSE", 0)
    torch.testing.assert_close(squared, eigenvector(graph, weights, of=of, max_products=50_000), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: katz(patterns.complete(3), torch.ones(8)), r"weights must be \[..., 9, H\], got \[8\]"),
        (lambda: katz(patterns.complete(3), -torch.ones(9)), "weights must not be negative, got -1"),
        (lambda: katz(patterns.complete(2, 3), torch.ones(6)), "graph must be square and without leading"),
        (lambda: katz(patterns.complete(3), torch.ones(9), of="both"), "of must be 'sources' or 'targets'"),
        (lambda: katz(patterns.complete(3), torch.ones(9), 0.5), "cannot converge.*spectral radius .*about 3"),
        (lambda: pagerank(patterns.complete(3), torch.ones(9), 1.0), r"alpha must be in \[0, 1\), got 1.0"),
        (lambda: pagerank(patterns.complete(3), torch.ones(9), 0.5, -torch.ones(3)), "personalization must be"),
        (
            lambda: pagerank(patterns.blocks([0, 1, 3]), torch.ones(5), personalization=torch.tensor([1.0, 0.0, 0.0])),
            "personalization must be positive somewhere in each member",
        ),
        (lambda: expected_visits(patterns.complete(3), torch.ones(9) / 9, start=torch.ones(4)), r"start must be \[3\]"),
    ],
)
def test_bad_input(call, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()


def test_nobody_reads() -> None:
    graph, weights = TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.long), 4), torch.zeros(2, 0, 3)
    torch.testing.assert_close(pagerank(graph, weights), torch.full((2, 4, 3), 0.25))
    torch.testing.assert_close(katz(graph, weights), torch.full((2, 4, 3), 0.5))
    torch.testing.assert_close(expected_visits(graph, weights), torch.full((2, 4, 3), 0.25))
    assert not eigenvector(graph, weights).any() and bool((leak(graph, weights) == 1).all())
