"""Algebra of graphs against the algebra of boolean matrices."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, connected_components, edge_sets, window
from graphattn.testing import random_graph

Counts = Callable[[TokenGraph], Tensor]

SET_OPERATIONS = {
    operator.or_: lambda a, b: a | b,
    operator.and_: lambda a, b: a & b,
    operator.sub: lambda a, b: a & ~b,
}


def random_edges(num_targets: int, num_sources: int, num_edges: int) -> TokenGraph:
    source, target = (torch.randint(0, max(size, 1), (num_edges,)) for size in (num_sources, num_targets))
    edge_index = torch.stack([source, target])
    return TokenGraph.from_edge_index(edge_index, num_targets=num_targets, num_sources=num_sources)


def sets(counts: Counts, *graphs: TokenGraph) -> list[Tensor]:
    return [counts(graph) > 0 for graph in graphs]


def assert_set(result: TokenGraph, expected: Tensor, counts: Counts) -> None:
    """These edges, each once, target-major with ascending sources."""
    assert torch.equal(counts(result), expected.long())
    assert result.edge_id is None
    assert result.edge_index.flip(0).t().tolist() == expected.nonzero().tolist()


@pytest.mark.parametrize("operation", SET_OPERATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", [(6, 6, 20), (4, 7, 12), (5, 5, 0), (0, 0, 0), (0, 3, 0), (1, 1, 3)], ids=str)
def test_set_operations(operation: Callable, size: tuple[int, int, int], counts: Counts) -> None:
    first, second = random_edges(*size), random_edges(*size)
    a, b = sets(counts, first, second)
    assert_set(operation(first, second), SET_OPERATIONS[operation](a, b), counts)
    assert_set(operation(first, first), SET_OPERATIONS[operation](a, a), counts)


@pytest.mark.parametrize("operation", SET_OPERATIONS, ids=lambda f: f.__name__)
def test_set_operations_with_a_pattern(operation: Callable, counts: Counts) -> None:
    explicit, pattern = random_edges(8, 8, 25), window(8, 2, dilation=2, causal=True)
    a, b = sets(counts, explicit, pattern)
    for result, expected in (
        (operation(explicit, pattern), SET_OPERATIONS[operation](a, b)),
        (operation(pattern, explicit), SET_OPERATIONS[operation](b, a)),
    ):
        assert result.pattern is None
        assert_set(result, expected, counts)


@pytest.mark.parametrize("sizes", [(5, 5, 5), (4, 7, 3), (1, 1, 1), (3, 0, 2), (0, 2, 2)], ids=str)
@pytest.mark.parametrize("chunk", [1 << 22, 5])
def test_compose(sizes: tuple[int, int, int], chunk: int, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first graph is targets x middle, the second middle x sources, as for matrices.
    monkeypatch.setattr(edge_sets, "_EXPANSION", chunk)
    targets, middle, sources = sizes
    for _ in range(5):
        first = random_edges(targets, middle, 2 * targets * bool(middle))
        second = random_edges(middle, sources, 2 * middle)
        a, b = sets(counts, first, second)
        assert_set(first @ second, (a.float() @ b.float()) > 0, counts)


def test_compose_follows_the_arrows(counts: Counts) -> None:
    first = TokenGraph.from_edge_index(torch.tensor([[1], [2]]), 3)  # 1 -> 2
    second = TokenGraph.from_edge_index(torch.tensor([[0], [1]]), 3)  # 0 -> 1
    assert (first @ second).edge_index.tolist() == [[0], [2]]
    assert (second @ first).num_edges == 0


@pytest.mark.parametrize("hops", [1, 2, 3, 10])
def test_power(square: TokenGraph, hops: int, counts: Counts) -> None:
    (step,) = sets(counts, square)
    walks = reached = step
    for _ in range(hops - 1):
        walks = (step.float() @ walks.float()) > 0
        reached = reached | walks
    assert_set(square.power(hops), reached, counts)


def test_coalesce(graph: TokenGraph, counts: Counts) -> None:
    assert_set(graph.coalesce(), counts(graph) > 0, counts)
    assert graph.has_duplicates == bool((counts(graph) > 1).any())
    assert not graph.coalesce().has_duplicates


def test_symmetrize(square: TokenGraph, counts: Counts) -> None:
    (a,) = sets(counts, square)
    assert_set(square.symmetrize(), a | a.T, counts)
    assert square.symmetrize().is_symmetric
    assert square.is_symmetric == torch.equal(counts(square), counts(square).T)


def test_transpose_keeps_the_order_of_edges(graph: TokenGraph) -> None:
    transposed = graph.T
    assert torch.equal(transposed.edge_index, graph.edge_index.flip(0))
    assert (transposed.num_targets, transposed.num_sources) == (graph.num_sources, graph.num_targets)
    assert torch.equal(transposed.target_batch, graph.source_batch)
    assert torch.equal(transposed.T.edge_index, graph.edge_index)
    assert torch.equal(transposed.T.csr.col, graph.csr.col)


def test_self_loops(square: TokenGraph, counts: Counts) -> None:
    source, target = square.edge_index
    without = square.without_self_loops()
    assert torch.equal(without.edge_index, square.edge_index[:, source != target])
    assert not without.has_self_loops and square.has_self_loops == bool((source == target).any())

    looped = square.with_self_loops()
    assert torch.equal(counts(looped).diagonal(), torch.ones(square.num_tokens).long())
    assert torch.equal(looped.without_self_loops().edge_index, without.edge_index)
    # What was there comes first and in its order; tokens without a loop get theirs at the end, ascending.
    first_of_loop = torch.ones_like(source, dtype=torch.bool)
    for edge in (source == target).nonzero().flatten().tolist():
        first_of_loop[edge] = not bool(((source == target) & (source == source[edge]))[:edge].any())
    kept = square.edge_index[:, first_of_loop]
    missing = (counts(square).diagonal() == 0).nonzero().flatten()
    assert torch.equal(looped.edge_index, torch.cat([kept, missing.expand(2, -1)], dim=1))
    assert torch.equal(looped.target_batch, square.target_batch)


def test_select_and_sample(graph: TokenGraph) -> None:
    keep = torch.rand(graph.num_edges) < 0.5
    chosen = graph.select(keep)
    assert torch.equal(chosen.edge_index, graph.edge_index[:, keep])
    assert torch.equal(chosen.target_batch, graph.target_batch)
    assert graph.sample(0.0).num_edges == 0 and torch.equal(graph.sample(1.0).edge_index, graph.edge_index)

    drawn = [graph.sample(0.5, torch.Generator().manual_seed(seed)).edge_index for seed in (0, 0)]
    assert torch.equal(*drawn)


def test_sample_keeps_the_share_asked_for() -> None:
    graph = random_edges(50, 50, 20_000)
    kept = graph.sample(0.3, torch.Generator().manual_seed(0)).num_edges
    assert abs(kept - 6000) < 5 * (20_000 * 0.3 * 0.7) ** 0.5


def test_restrict(square: TokenGraph, counts: Counts) -> None:
    matrix = counts(square)
    mask = torch.rand(square.num_tokens) < 0.7
    ascending = mask.nonzero().flatten()
    for tokens in (mask, ascending):
        part = square.restrict(tokens)
        assert torch.equal(counts(part), matrix[ascending][:, ascending])
        assert torch.equal(part.target_batch, square.target_batch[ascending])
        assert part.num_members == square.num_members
        inside = mask[square.edge_index].all(0)
        assert torch.equal(ascending[part.edge_index], square.edge_index[:, inside]), "the order of edges stays"
    if square.target_ptr is None:
        shuffled = torch.randperm(square.num_tokens)
        assert torch.equal(counts(square.restrict(shuffled)), matrix[shuffled][:, shuffled])
    assert square.restrict(torch.zeros(0, dtype=torch.int64)).num_tokens == 0


def test_members_survive_where_they_hold() -> None:
    batch = random_graph(0, "batch")
    plain = TokenGraph.from_edge_index(batch.edge_index, batch.num_tokens)
    for kept in (
        batch | batch.T,
        batch & plain,
        plain & batch,
        batch - plain,
        batch @ batch,
        batch.power(2),
        batch.T,
        batch.symmetrize(),
        batch.coalesce(),
        batch.with_self_loops(),
        batch.without_self_loops(),
        batch.sample(0.5),
    ):
        assert kept.target_ptr is not None and torch.equal(kept.target_ptr, batch.target_ptr)
        assert len(kept.unbatch()) == batch.num_members  # raises if an edge joined two members
    assert (batch | plain).num_members == 1, "edges of a graph of one member may join any tokens"
    assert (plain - batch).num_members == (batch @ plain).num_members == 1


def test_leading_dimensions_go_copy_by_copy(counts: Counts) -> None:
    firsts, seconds = ([random_edges(4, 4, 9) for _ in range(3)] for _ in range(2))
    first, second = TokenGraph.per_head(firsts), TokenGraph.per_head(seconds)
    for operation in (operator.or_, operator.and_, operator.sub, operator.matmul):
        expected = torch.stack([operation(a, b).to_dense() for a, b in zip(firsts, seconds, strict=True)])
        result = operation(first, second)
        assert result.leading == (3,) and torch.equal(result.to_dense(), expected)
    for unary in (lambda g: g.T, TokenGraph.symmetrize, TokenGraph.coalesce, TokenGraph.without_self_loops):
        assert torch.equal(unary(first).to_dense(), torch.stack([unary(graph).to_dense() for graph in firsts]))
    both = first.symmetrize()
    assert torch.equal(both.edge_index[:, both.reverse_edge], both.edge_index.flip(0))


def test_connected_components() -> None:
    scipy = pytest.importorskip("scipy.sparse.csgraph")
    for edges in (0, 3, 8, 20):
        graph = random_edges(12, 12, edges)
        label = connected_components(graph)
        _, expected = scipy.connected_components(graph.to_dense().numpy(), directed=False)
        same = torch.from_numpy(expected)[:, None] == torch.from_numpy(expected)
        assert torch.equal(label[:, None] == label, same)
        first = [label.tolist().index(component) for component in range(int(label.max()) + 1)]
        assert first == sorted(first), "numbered by first token"


def bipartite() -> TokenGraph:
    return random_edges(3, 4, 5)


def as_many() -> TokenGraph:
    """Two bipartite members, as many targets as sources together."""
    edge_index, ptrs = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0, 2, 3], [0, 1, 3]])
    return TokenGraph.from_edge_index(edge_index, num_tokens=3, target_ptr=ptrs[0], source_ptr=ptrs[1])


def stacked() -> TokenGraph:
    return TokenGraph.per_head([random_edges(3, 3, 4)] * 2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda g: g | random_edges(4, 4, 3), ArgumentError, r"a \| b needs two graphs of one size, got 3 targets"),
        (lambda g: g & bipartite(), ArgumentError, "a & b needs two graphs of one size"),
        (lambda g: g - random_edges(4, 4, 3), ArgumentError, "a - b needs two graphs of one size"),
        (lambda g: g @ random_edges(4, 4, 3), ArgumentError, "a @ b needs the sources of a .* got 3 sources and 4 t"),
        (lambda g: g | g.to("meta"), ArgumentError, r"a \| b needs two graphs on one device, got cpu and meta"),
        (lambda g: g @ g.to("meta"), ArgumentError, "a @ b needs two graphs on one device, got cpu and meta"),
        (lambda g: g | 3, ArgumentTypeError, r"a \| b needs two token graphs, got int"),
        (lambda g: g | stacked(), ArgumentError, r"the same leading dimensions, got \[\] \(''\) and \[2\] \('h'\)"),
        (lambda g: bipartite().power(2), ArgumentError, "power needs a square graph, got 3 targets and 4 sources"),
        (lambda g: bipartite().symmetrize(), ArgumentError, "symmetrize needs a square graph"),
        (lambda g: bipartite().with_self_loops(), ArgumentError, "with_self_loops needs a square graph"),
        (lambda g: bipartite().without_self_loops(), ArgumentError, "without_self_loops needs a square graph"),
        (lambda g: bipartite().restrict(torch.tensor([0])), ArgumentError, "restrict needs a square graph"),
        (lambda g: bipartite().reverse_edge, ArgumentError, "reverse_edge needs a square graph"),
        (lambda g: connected_components(bipartite()), ArgumentError, "connected_components needs a square graph"),
        (
            lambda g: connected_components(stacked()),
            ArgumentError,
            "connected_components needs a graph without leading",
        ),
        (lambda g: stacked().with_self_loops(), ArgumentError, "before stacking"),
        (lambda g: stacked().restrict(torch.tensor([0])), ArgumentError, r"restrict needs .*, got \[2\]"),
        # An edge from source 1 to target 2: as one list of tokens, it would join two members.
        (lambda g: as_many().restrict(torch.tensor([0, 1, 2])), ArgumentError, "restrict needs members whose targets"),
        (lambda g: as_many().with_self_loops(), ArgumentError, "with_self_loops needs members whose targets"),
        (lambda g: g.power(0), ArgumentError, "hops must be an int of 1 or more, got 0"),
        (lambda g: g.power(1.5), ArgumentError, "hops must be an int of 1 or more, got 1.5"),
        (lambda g: g.sample(1.5), ArgumentError, r"keep must be a probability in 0..1, got 1.5"),
        (lambda g: g.select([True]), ArgumentTypeError, "keep must be a boolean tensor .* got list"),
        (lambda g: g.select(torch.ones(4)), ArgumentTypeError, "keep must be a boolean tensor .* got torch.float32"),
        (lambda g: g.select(torch.ones(3).bool()), ArgumentError, r"keep must have shape \[4\], got \[3\]"),
        (lambda g: g.restrict([0]), ArgumentTypeError, "tokens must be indices .* got list"),
        (lambda g: g.restrict(torch.ones(3)), ArgumentTypeError, "tokens must be indices .* got torch.float32"),
        (lambda g: g.restrict(torch.tensor([0, 3])), ArgumentError, "tokens must lie in 0..2, got 0..3"),
        (lambda g: g.restrict(torch.tensor([0, 0])), ArgumentError, "tokens must differ"),
        (lambda g: g.restrict(torch.ones(2).bool()), ArgumentError, r"mask must have shape \[3\], got \[2\]"),
        (
            lambda g: TokenGraph.batch([g, g]).restrict(torch.tensor([3, 0])),
            ArgumentError,
            "tokens of a batch must keep its members together",
        ),
    ],
)
def test_bad_arguments(call: Callable, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        call(random_edges(3, 3, 4))
