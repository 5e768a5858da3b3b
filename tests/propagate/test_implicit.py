"""Resolvent, Katz and PageRank: solved to a tolerance, differentiated through the solution."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, attend, edge_weights, patterns
from graphattn.attention import propagate
from graphattn.errors import ArgumentError
from graphattn.propagate import (
    EdgeOperator,
    Katz,
    Neumann,
    PairOperator,
    PersonalizedPageRank,
    Propagator,
    Resolvent,
    SolveReport,
)
from graphattn.testing import GRAPH_KINDS, random_graph

H, D = 2, 3
F64 = torch.float64


def leaves(graph: TokenGraph) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.rand(graph.num_edges, H, dtype=F64) / (graph.num_tokens + 1)
    values = torch.randn(graph.num_sources, H, D, dtype=F64)
    return weights.requires_grad_(), values.requires_grad_(), torch.tensor([0.9, 0.5], dtype=F64, requires_grad=True)


def infsa_weights(graph: TokenGraph, width: int = 8) -> Tensor:
    q, k = torch.randn(2, graph.num_tokens, H, width, dtype=F64)
    return edge_weights(graph, q, k, score="relu_dot", normalizer="frobenius")


@pytest.mark.parametrize("method", ["dense", "gmres"])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_value_and_gradient_of_the_solution(
    kind: str, method: str, dense: Callable[..., Tensor], gradients_agree: Callable[..., None]
) -> None:
    """Invariant 3 of the paper's sheet, among others: autograd through a dense solve has the same gradients."""
    graph = random_graph(1, kind)
    weights, values, gamma = leaves(graph)
    operator, eye = EdgeOperator(graph, weights), torch.eye(graph.num_tokens, dtype=F64)
    options: dict[str, Any] = {"method": method, "tolerance": 1e-13}
    for mover in (Resolvent(gamma, **options), Katz(gamma, **options), PersonalizedPageRank(gamma, **options)):
        factor, matrix, v = gamma[:, None, None], dense(graph, weights), values.transpose(0, 1)
        if isinstance(mover, PersonalizedPageRank):
            expected = torch.linalg.solve(eye - (1 - factor) * matrix, factor * v)
        else:
            expected = torch.linalg.solve(eye - factor * matrix, v) - (v if isinstance(mover, Katz) else 0)
        expected = expected.transpose(0, 1)
        gradients_agree(mover(operator, values), expected, weights, values, gamma, tolerance=1e-11)


@pytest.mark.parametrize("method", ["dense", "gmres"])
def test_gradcheck(method: str) -> None:
    graph = random_graph(1, "batch")

    def run(weights: Tensor, values: Tensor, gamma: Tensor) -> Tensor:
        return Resolvent(gamma, method=method, tolerance=1e-14)(EdgeOperator(graph, weights), values)

    assert torch.autograd.gradcheck(run, leaves(graph))


@pytest.mark.parametrize("method", ["dense", "gmres"])
@pytest.mark.parametrize("kind", ["dense", "batch", "hub"])
def test_the_resolvent_of_infinite_self_attention(kind: str, method: str, dense: Callable[..., Tensor]) -> None:
    """Invariant 2: (I - gamma A)(C + I) = I, C >= 0, C = gamma A + gamma A C; and 3: dC = F (gamma dA) F."""
    graph, gamma = random_graph(1, kind), 0.95
    n = graph.num_tokens
    weights = infsa_weights(graph)
    matrix, eye = dense(graph, weights), torch.eye(n, dtype=F64)
    mover = Katz(gamma, method=method, tolerance=1e-14)

    def katz(weights: Tensor) -> Tensor:
        return mover(EdgeOperator(graph, weights), eye.unsqueeze(1).expand(-1, H, -1).contiguous()).permute(1, 0, 2)

    c = katz(weights)
    close = {"rtol": 0.0, "atol": 1e-10}
    torch.testing.assert_close((eye - gamma * matrix) @ (c + eye), eye.expand(H, -1, -1), **close)
    assert (c >= -1e-14).all()
    torch.testing.assert_close(c, gamma * matrix + gamma * matrix @ c, **close)
    direction = torch.randn_like(weights)
    f = c + eye
    step = 1e-6
    slope = (katz(weights + step * direction) - katz(weights - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, gamma * f @ dense(graph, direction) @ f, rtol=1e-6, atol=1e-7)


def test_the_truncated_series_comes_as_close_as_its_bound(dense: Callable[..., Tensor]) -> None:
    """Invariant 1: a norm below 1, and a tail of at most gamma^(T + 1) / (1 - gamma)."""
    n, gamma = 64, 0.95
    graph = TokenGraph.from_edge_index(torch.cartesian_prod(torch.arange(n), torch.arange(n)).T, n)
    weights = infsa_weights(graph, 32)
    norm = weights.square().sum(0).sqrt()
    assert ((norm < 1) & (norm > 0.999)).all()
    unit = torch.eye(n, dtype=F64).unsqueeze(1).expand(-1, H, -1).contiguous()
    operator = EdgeOperator(graph, weights)
    closed = Katz(gamma)(operator, unit)
    for hops in (3, 10, 40):
        tail = (closed - Neumann(hops, gamma)(operator, unit)).square().sum((0, 2)).sqrt()
        assert (tail <= gamma ** (hops + 1) / (1 - gamma)).all()
    assert tail.max() < 1e-8  # the sheet measured 1.7e-11 on zero-mean queries and keys


# --- networkx ---------------------------------------------------------------------------------------------------


@pytest.mark.requires("nx")
@pytest.mark.parametrize("method", ["dense", "gmres"])
def test_katz_of_networkx(method: str) -> None:
    import networkx as nx

    for source in (nx.karate_club_graph(), nx.gnp_random_graph(60, 0.08, seed=1, directed=True)):
        source = nx.DiGraph([(a, b) for a, b in source.to_directed().edges])
        source.add_nodes_from(range(max(source) + 1))
        graph = TokenGraph.from_networkx(source)
        largest = max(abs(x) for x in nx.adjacency_spectrum(source))
        gamma = 0.85 / largest
        expected = nx.katz_centrality(source, gamma, max_iter=10_000, tol=1e-13, normalized=False)
        ones = torch.ones(graph.num_tokens, 1, 1, dtype=F64)
        got = propagate(graph, ones.new_ones(graph.num_edges), ones, Resolvent(gamma, method=method, tolerance=1e-13))
        assert got.flatten().tolist() == pytest.approx([expected[node] for node in source], rel=0, abs=1e-8)


@pytest.mark.requires("nx")
@pytest.mark.parametrize("method", ["dense", "gmres"])
@pytest.mark.parametrize("personal", [False, True])
def test_pagerank_of_networkx(method: str, personal: bool) -> None:
    import networkx as nx

    for source in (nx.karate_club_graph(), nx.gnp_random_graph(60, 0.08, seed=1, directed=True)):
        graph = TokenGraph.from_networkx(source)
        n = graph.num_tokens
        start = torch.arange(1.0, n + 1, dtype=F64) if personal else torch.ones(n, dtype=F64)
        start = start / start.sum()
        person = dict(zip(source, start.tolist(), strict=True)) if personal else None
        expected = nx.pagerank(source, alpha=0.85, personalization=person, tol=1e-14, max_iter=1000, weight=None)
        weights = 1 / graph.out_degree.to(F64)[graph.edge_index[0]]
        mover = PersonalizedPageRank(0.15, method=method, tolerance=1e-13)
        got = propagate(graph, weights, start.reshape(n, 1, 1), mover).flatten()
        # networkx sends a walk without a way on to the start; so do we, when what leaves is shared out again.
        assert (got / got.sum()).tolist() == pytest.approx([expected[node] for node in source], rel=0, abs=1e-8)


# --- memory, reports, errors ------------------------------------------------------------------------------------


def slow_system() -> tuple[TokenGraph, Tensor, Tensor]:
    """A long ring with short cuts: many iterations."""
    n = 400
    token = torch.arange(n)
    edges = torch.stack([torch.cat([token, token]), torch.cat([(token + 1) % n, (token + 2) % n])])
    graph = TokenGraph.from_edge_index(edges, n).prepare()
    assert not graph.has_duplicates  # looked up once
    weights = torch.full((2 * n, 1), 0.5, dtype=F64, requires_grad=True)
    return graph, weights, torch.randn(n, 1, 2, dtype=F64, requires_grad=True)


def test_memory_does_not_depend_on_the_iterations(live: Any) -> None:
    graph, weights, values = slow_system()
    found = []
    for tolerance in (1e-2, 1e-9):
        mover = PersonalizedPageRank(0.05, tolerance=tolerance)
        saved: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: (s.append(x.numel()), x)[1], lambda x: x)
        with live() as memory:
            with hooks:
                out = mover(EdgeOperator(graph, weights), values)
            kept = memory.now
            out.sum().backward()
        assert mover.report is not None and mover.adjoint_report is not None
        assert mover.report.method == mover.adjoint_report.method == "gmres"
        found.append((sorted(saved), kept, memory.peak, mover.report.products))
    (saved, kept, peak, few), (saved_more, kept_more, peak_more, many) = found
    assert few > 12 and many > 3 * few  # more than one cycle, and then far more
    assert saved == saved_more and len(saved) < 30
    assert kept == kept_more
    assert peak_more <= 1.02 * peak


def test_the_report() -> None:
    graph, weights, values = slow_system()
    mover = PersonalizedPageRank(0.1, tolerance=1e-8)
    assert mover.report is None
    out = mover(EdgeOperator(graph, weights), values)
    report = mover.report
    assert isinstance(report, SolveReport) and report.converged and 10 < report.products < 500
    assert report.residual <= 1e-8 == report.tolerance
    assert report.radius == pytest.approx(0.9)
    error = out - (0.1 * values + 0.9 * EdgeOperator(graph, weights).matmul(out))
    assert error.norm() <= 3e-8 * out.norm()
    assert mover.adjoint_report is None
    out.sum().backward()
    assert mover.adjoint_report.converged
    small = Resolvent(0.5)
    attend(random_graph(0), *torch.randn(3, random_graph(0).num_tokens, H, D), propagator=small)
    assert small.report is not None and small.report.method == "dense" and small.report.converged


def test_a_warning_where_the_tolerance_is_not_reached() -> None:
    graph, weights, values = slow_system()
    mover = PersonalizedPageRank(0.01, max_products=20)
    with pytest.warns(RuntimeWarning, match="PersonalizedPageRank: a residual of .* after 2. products, where"):
        out = mover(EdgeOperator(graph, weights), values)
    assert mover.report is not None and not mover.report.converged
    with pytest.warns(RuntimeWarning, match=r"PersonalizedPageRank \(backward\): a residual"):
        out.square().sum().backward()


def test_a_series_that_cannot_converge() -> None:
    graph = TokenGraph.batch([random_graph(0, "sparse"), random_graph(1, "dense")])
    x = torch.randn(graph.num_tokens, H, D)
    # Softmax: every row sums to 1, so the radius is 1.
    with pytest.raises(
        ArgumentError, match=r"Resolvent: the series cannot converge: the discount, 1, times .* about 1 "
    ):
        attend(graph, x, x, x, propagator=Resolvent(1.0))
    weights = torch.full((graph.num_edges, 1), 1.0)
    top = max(float(torch.linalg.eigvals(g.to_dense().double()).abs().max()) for g in graph.unbatch())
    with pytest.raises(ArgumentError) as error:
        propagate(graph, weights, x[:, :1], Katz(0.5))
    numbers = r"about ([\d.]+) \(norms bound it by ([\d.]+)\), .* in member 1, head 0; take a discount below ([\d.]+),"
    found = re.search(numbers, str(error.value))
    assert found is not None, error.value
    radius, bound, below = (float(x) for x in found.groups())
    assert radius == pytest.approx(top, rel=1e-4) and bound > radius and below == pytest.approx(1 / top, rel=1e-4)
    # The norms are above 1, the radius is below: power steps tell.
    line = TokenGraph.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
    mover = Resolvent(0.9)
    out = propagate(line, torch.full((3,), 3.0), torch.ones(4, 1, 1), mover)
    assert out.flatten().tolist() == pytest.approx([1.0, 3.7, 10.99, 30.673], rel=1e-5)
    assert mover.report is not None and mover.report.radius == 0.0
    # Without the check, the system is solved.
    ring = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    out = propagate(ring, torch.full((2,), 2.0), torch.tensor([1.0, 0.0]).reshape(2, 1, 1), Resolvent(1.0, check=False))
    assert out.flatten().tolist() == pytest.approx([-1 / 3, -2 / 3], rel=1e-5)


def operator_of(matrix: Tensor) -> EdgeOperator:
    target, source = matrix.nonzero().T
    graph = TokenGraph.from_edge_index(torch.stack([source, target]), matrix.shape[0])
    return EdgeOperator(graph, matrix[target, source].unsqueeze(1))


def chain_beside_a_loop() -> Tensor:
    """Along the chain, a vector grows by so much that the loop's part is 0 beside it."""
    matrix = torch.zeros(12, 12)
    matrix[range(10), range(1, 11)] = 1e10
    matrix[11, 11] = 2.0
    return matrix


@pytest.mark.parametrize(
    ("matrix", "gamma", "radius"),
    [
        # The Jordan block is the largest after 64 steps, and outgrown by the loop later.
        (torch.tensor([[1.02, 0, 0], [0, 0.97, 1], [0, 0, 0.97]]), 1.0, 1.02),
        # A vector of ones is in the null space.
        (torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2]]), 0.9, 3.0),
        (chain_beside_a_loop(), 1.0, 2.0),
    ],
)
def test_a_series_that_diverges_later_than_power_steps_tell(matrix: Tensor, gamma: float, radius: float) -> None:
    with pytest.raises(ArgumentError, match="Katz: the series cannot converge") as error:
        Katz(gamma)(operator_of(matrix), torch.eye(len(matrix)).unsqueeze(1))
    found = re.search(r"about ([\d.]+) ", str(error.value))
    assert found is not None and float(found.group(1)) == pytest.approx(radius, rel=2e-3)


def test_a_diverging_series_does_not_hide_behind_a_converging_member() -> None:
    blocks = [torch.tensor([[0.97, 1.0], [0.0, 0.97]]), torch.tensor([[1.02, 0.0], [0.0, 0.5]])]
    operator = operator_of(torch.block_diag(*blocks))
    graph = TokenGraph.from_edge_index(operator._graph.edge_index, ptr=torch.tensor([0, 2, 4]))
    with pytest.raises(ArgumentError, match="in member 1, head 0"):
        Katz(1.0)(EdgeOperator(graph, operator._weights), torch.ones(4, 1, 1))


@pytest.mark.parametrize("copies", [1, 150])
@pytest.mark.parametrize("block", [[[0.97, 100.0], [0.0, 0.97]], [[0.0, 2.0], [0.1, 0.0]]])
def test_a_series_that_converges_late_is_taken(block: list[list[float]], copies: int) -> None:
    """For weights that are not negative, in small members and in large ones."""
    matrix = torch.block_diag(*[torch.tensor(block, dtype=F64)] * copies)
    right = torch.randn(2 * copies, 1, 1, dtype=F64)
    mover = Resolvent(1.0, method="dense")
    expected = torch.linalg.solve(torch.eye(2 * copies, dtype=F64) - matrix, right[:, 0])
    torch.testing.assert_close(mover(operator_of(matrix), right)[:, 0], expected)
    radius = float(torch.linalg.eigvals(matrix).abs().max())
    assert mover.report is not None and mover.report.radius is not None
    assert radius * (1 - 1e-12) <= mover.report.radius < 1


def test_signed_weights_that_converge() -> None:
    """The radius of the absolute weights is above 1: the powers of a small member tell, those of a large one do not."""
    block = torch.tensor([[0.5, -0.7], [0.7, 0.5]], dtype=F64)
    mover = Resolvent(1.0)
    mover(operator_of(block), torch.ones(2, 1, 1, dtype=F64))
    assert mover.report is not None and mover.report.radius == pytest.approx(0.74**0.5, rel=1e-3)
    large = operator_of(torch.block_diag(*[block] * 150))
    with pytest.raises(ArgumentError, match="check=False, where negative weights"):
        mover(large, torch.ones(300, 1, 1, dtype=F64))
    Resolvent(1.0, check=False)(large, torch.ones(300, 1, 1, dtype=F64))


def test_signed_weights_of_pairs_never_listed() -> None:
    """Queries and keys whose products are 2 on the diagonal and -1 beside it."""
    gram = torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2]], dtype=F64)
    q, k = gram.unsqueeze(1), torch.eye(3, dtype=F64).unsqueeze(1)
    pairs = PairOperator(patterns.complete(3), q, k, lambda x: x, lambda x: x, 0.0)
    with pytest.raises(ArgumentError, match="Katz: the series cannot converge"):
        Katz(0.9)(pairs, torch.eye(3, dtype=F64).unsqueeze(1))
    Katz(0.3)(pairs, torch.eye(3, dtype=F64).unsqueeze(1))


def test_a_discount_may_converge_for_one_head_only() -> None:
    ring = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    x = torch.randn(2, H, D)
    gamma = torch.tensor([0.5, 1.5])
    with pytest.raises(ArgumentError, match="the discount, 1.5, .* in member 0, head 1"):
        propagate(ring, torch.ones(2), x, Resolvent(gamma))


def test_only_one_derivative() -> None:
    graph = random_graph(0, "dense")
    weights, values, _ = leaves(graph)
    out = Resolvent(0.5)(EdgeOperator(graph, weights), values)
    (slope,) = torch.autograd.grad(out.sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiated again"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "cg"}, "method must be one of 'auto', 'dense', 'gmres', got 'cg'"),
        ({"tolerance": 0.0}, "tolerance must be between 0 and 1, got 0.0"),
        ({"max_products": 0}, "max_products must be at least 1, got 0"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        Resolvent(0.5, **options)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="alpha must be from 0 to 1, got 1.5"):
        PersonalizedPageRank(1.5)
    graph = random_graph(0, "dense", bipartite=True)
    with pytest.raises(ArgumentError, match="needs a square graph"):
        propagate(graph, torch.zeros(graph.num_edges, H), torch.zeros(graph.num_sources, H, D), "katz")


# --- through attend ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dense", "gmres"])
@pytest.mark.parametrize("axes", ["", "shared", "h", "b"])
def test_through_attend(axes: str, method: str, gradients_agree: Callable[..., None]) -> None:
    """PageRank over softmax weights, with gradients for queries and keys, wherever heads and entries are folded to."""
    first, second = (random_graph(seed, "dense") for seed in (4, 5))
    n = min(first.num_tokens, second.num_tokens)
    graphs = [g.restrict(torch.arange(n)) for g in (first, second)]
    graph = {"h": TokenGraph.per_head, "b": TokenGraph.stack}.get(axes, lambda graphs: graphs[0])(graphs)
    q, k, v = (torch.randn(*([2] if axes else []), n, H, D, dtype=F64, requires_grad=True) for _ in range(3))
    alpha = torch.tensor([0.1, 0.6], dtype=F64, requires_grad=True)
    got = attend(graph, q, k, v, propagator=PersonalizedPageRank(alpha, method=method, tolerance=1e-13))

    def one(entry: int, head: int) -> Tensor:
        which = graphs[{"h": head, "b": entry}.get(axes, 0)]
        allowed = which.to_dense()
        a, b, c = (x[(entry,) if axes else ()][:, head] for x in (q, k, v))
        score = (a @ b.T / D**0.5).masked_fill(~allowed, float("-inf"))
        weight = score.softmax(-1)
        system = torch.eye(n, dtype=F64) - (1 - alpha[head]) * weight
        return alpha[head] * torch.linalg.solve(system, c)

    assert all(bool(g.to_dense().any(1).all()) for g in graphs)
    entries = [torch.stack([one(entry, head) for head in range(H)], 1) for entry in range(2 if axes else 1)]
    expected = torch.stack(entries) if axes else entries[0]
    gradients_agree(got, expected, q, k, v, alpha, tolerance=1e-10)


@pytest.mark.parametrize("mover", [PersonalizedPageRank(0.1), Resolvent(0.9)], ids=["pagerank", "resolvent"])
def test_members_of_a_batch_are_each_for_itself(mover: Propagator) -> None:
    graphs = [random_graph(seed, "dense") for seed in range(3)]
    batch = TokenGraph.batch(graphs)
    x = torch.randn(batch.num_tokens, H, D, dtype=F64)
    x[: graphs[0].num_tokens] *= 1e6  # must not decide when the others are done
    mover.method, mover.tolerance = "gmres", 1e-12  # type: ignore[assignment]
    out = propagate(batch, edge_weights(batch, 0 * x, x), x, mover)
    parts = x.split([g.num_tokens for g in graphs])
    for graph, part, got in zip(graphs, parts, out.split([len(p) for p in parts]), strict=True):
        alone = propagate(graph, edge_weights(graph, 0 * part, part), part, mover)
        torch.testing.assert_close(got, alone, rtol=1e-9, atol=1e-9 * float(part.abs().max()))


def test_a_half_type_is_solved_in_single() -> None:
    graph = random_graph(0, "dense")
    q, k, v = torch.randn(3, graph.num_tokens, H, D).bfloat16()
    mover = PersonalizedPageRank(0.1)
    out = attend(graph, q, k, v, propagator=mover)
    assert out.dtype == torch.bfloat16 and mover.report is not None and mover.report.converged
    exact = attend(graph, q.double(), k.double(), v.double(), propagator=mover)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-3)
