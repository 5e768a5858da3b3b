"""Laplacian encoding against its definition, and on every awkward graph."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from graphattn.encoding import LaplacianEncoding, eigen, laplacian_pe, random_walk_pe
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph


def dense_parts(graph: TokenGraph) -> tuple[torch.Tensor, torch.Tensor]:
    """Adjacency (without loops) and degree, float64."""
    size = graph.num_targets
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    source, target = graph.edge_index
    adjacency.index_put_((target, source), torch.ones(graph.num_edges, dtype=torch.float64), accumulate=True)
    adjacency.fill_diagonal_(0)
    return adjacency, adjacency.sum(1)


def dense_laplacian(graph: TokenGraph, normalization: str | None) -> torch.Tensor:
    adjacency, degree = dense_parts(graph)
    clipped = degree.clamp(min=1)
    eye = torch.eye(len(degree), dtype=torch.float64)
    if normalization == "sym":
        return eye - clipped[:, None] ** -0.5 * adjacency * clipped[None] ** -0.5
    if normalization == "rw":
        return eye - adjacency / clipped[:, None]
    return degree.diag() - adjacency


def pe64(graph: TokenGraph, k: int, **options: object) -> LaplacianEncoding:
    return laplacian_pe(graph, k, dtype=torch.float64, return_eigenvalues=True, **options)  # type: ignore[call-overload,no-any-return]


SOLVED_BY = pytest.mark.parametrize(("size", "solver"), [(30, "dense"), (90, "dense"), (90, "sparse")])


@SOLVED_BY
def test_orthonormal_and_orthogonal_to_the_trivial_vector(graph_of, size, solver):
    graph = graph_of(nx.connected_watts_strogatz_graph(size, 4, 0.3, seed=1))
    pe = pe64(graph, 7, solver=solver).pe
    degree = dense_parts(graph)[1]
    torch.testing.assert_close(pe.T @ pe, torch.eye(7, dtype=torch.float64), atol=1e-10, rtol=0)
    assert (pe.T @ degree.sqrt()).abs().max() < 1e-8


@SOLVED_BY
@pytest.mark.parametrize("normalization", ["sym", "rw", None])
@pytest.mark.parametrize("per_component", [True, False])
def test_eigenvectors_of_the_smallest_eigenvalues(graph_of, size, solver, normalization, per_component):
    graph = graph_of(nx.connected_watts_strogatz_graph(size, 4, 0.3, seed=2))
    found = pe64(graph, 6, solver=solver, normalization=normalization, per_component=per_component)
    laplacian = dense_laplacian(graph, normalization)
    values = torch.linalg.eigvals(laplacian).real.sort().values
    assert torch.equal(found.eigenvalues, found.eigenvalues[:1].expand(size, 6))
    torch.testing.assert_close(found.eigenvalues[0], values[1:7], atol=1e-9, rtol=0)
    assert (laplacian @ found.pe - found.pe * found.eigenvalues).abs().max() < 1e-8
    torch.testing.assert_close(found.pe.norm(dim=0), torch.ones(6, dtype=torch.float64))


def test_sparse_equals_dense_on_a_simple_spectrum(graph_of):
    graph = graph_of(nx.connected_watts_strogatz_graph(300, 6, 0.4, seed=0))
    dense, sparse = pe64(graph, 8, solver="dense"), pe64(graph, 8, solver="sparse")
    assert dense.group[0].tolist() == list(range(8))
    torch.testing.assert_close(sparse.pe, dense.pe, atol=1e-7, rtol=0)


def test_auto_takes_the_sparse_solver_for_large_components(graph_of):
    graph = graph_of(nx.random_regular_graph(4, 1200, seed=0))
    assert torch.equal(laplacian_pe(graph, 3), laplacian_pe(graph, 3, solver="sparse"))
    assert not torch.equal(pe64(graph, 3).pe, pe64(graph, 3, solver="dense").pe)


@pytest.mark.parametrize("solver", ["dense", "sparse"])
def test_same_bits_each_time_and_whatever_the_global_generator(graph_of, solver):
    graph = graph_of(nx.cycle_graph(200))  # every eigenvalue twice
    torch.manual_seed(1)
    np.random.seed(1)
    first = laplacian_pe(graph, 5, solver=solver)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(laplacian_pe(graph, 5, solver=solver), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("size", "solver"), [(40, "dense"), (100, "dense"), (1500, "sparse")])
def test_cycle_finds_both_eigenvectors_of_each_double_eigenvalue(graph_of, size, solver):
    found = pe64(graph_of(nx.cycle_graph(size)), 6, solver=solver)
    angle = 2 * np.pi * torch.tensor([1, 1, 2, 2, 3, 3], dtype=torch.float64) / size
    torch.testing.assert_close(found.eigenvalues[0], 1 - angle.cos(), atol=1e-12, rtol=1e-6)
    assert found.group[0].tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(found.pe.T @ found.pe, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


def test_long_path_falls_back_to_shift_and_invert(graph_of, monkeypatch):
    size, factored = 4000, []  # smallest eigenvalue 3e-7: beyond Lanczos
    splu = eigen.sparse_linalg.splu
    monkeypatch.setattr(eigen.sparse_linalg, "splu", lambda *a, **k: factored.append(a) or splu(*a, **k))
    found = pe64(graph_of(nx.path_graph(size)), 3, solver="sparse")
    assert len(factored) == 1
    angle = np.pi * torch.tensor([1.0, 2, 3], dtype=torch.float64) / (size - 1)
    torch.testing.assert_close(found.eigenvalues[0], 1 - angle.cos(), atol=0, rtol=1e-5)
    assert found.group[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("solver", ["auto", "sparse"])
def test_fewer_tokens_than_columns_are_padded(graph_of, solver):
    found = pe64(graph_of(nx.path_graph(4)), 10, solver=solver)
    assert found.pe.shape == (4, 10)
    assert (found.pe[:, :3].abs().sum(0) > 0).all()
    assert (found.pe[:, 3:] == 0).all() and (found.eigenvalues[:, 3:] == 0).all()
    assert found.group[0].tolist() == [0, 1, 2] + [-1] * 7


@pytest.mark.parametrize("per_component", [True, False])
@pytest.mark.parametrize(("tokens", "edges"), [(0, []), (1, []), (1, [(0, 0)]), (5, [])])
def test_no_edges_no_position(tokens, edges, per_component):
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    graph = TokenGraph.from_edge_index(edge_index, tokens)
    pe = laplacian_pe(graph, 3, per_component=per_component)
    assert pe.shape == (tokens, 3) and pe.isfinite().all()
    if per_component or tokens <= 1:
        assert (pe == 0).all()


def test_components_are_encoded_as_if_alone(graph_of):
    left, right = nx.connected_watts_strogatz_graph(12, 4, 0.3, seed=3), nx.path_graph(5)
    both = nx.disjoint_union(nx.disjoint_union(left, nx.empty_graph(1)), right)
    # Interleave the components, so that their tokens are not consecutive.
    order = np.random.default_rng(0).permutation(18)
    mixed = nx.relabel_nodes(both, dict(enumerate(order.tolist())))
    pe = laplacian_pe(graph_of(mixed), 3)[order]
    alone = [laplacian_pe(graph_of(part), 3) for part in (left, nx.empty_graph(1), right)]
    torch.testing.assert_close(pe.abs(), torch.cat(alone).abs(), atol=1e-6, rtol=0)
    assert (pe[12] == 0).all()


def test_published_form_drops_the_first_column_only(graph_of):
    graph = graph_of(nx.disjoint_union(nx.path_graph(5), nx.cycle_graph(6)))
    found = pe64(graph, 2, per_component=False)
    assert abs(found.eigenvalues[0, 0]) < 1e-12  # the second null vector: tells components apart
    root = dense_parts(graph)[1].sqrt()
    ratio = found.pe[:, 0] / root
    torch.testing.assert_close(ratio[:5], ratio[:1].expand(5))
    torch.testing.assert_close(ratio[5:], ratio[5:6].expand(6))
    assert pe64(graph, 2).eigenvalues.min() > 0.01


@pytest.mark.requires("pyg")
def test_published_form_equals_pyg_up_to_sign(graph_of):
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddLaplacianEigenvectorPE

    graph = graph_of(nx.connected_watts_strogatz_graph(40, 4, 0.3, seed=5))
    data = Data(edge_index=graph.edge_index, num_nodes=40)
    expected = AddLaplacianEigenvectorPE(5, is_undirected=True)(data).laplacian_eigenvector_pe.float()
    for per_component in (True, False):
        pe = laplacian_pe(graph, 5, per_component=per_component)
        torch.testing.assert_close(pe.abs(), expected.abs(), atol=1e-5, rtol=0)


def test_batch_equals_members_bit_by_bit(graph_of, batch_of):
    members = [
        graph_of(nx.gnp_random_graph(size, 0.2, seed=seed)) for seed, size in enumerate([7, 23, 23, 80, 1, 23, 120, 2])
    ]
    for options in ({}, {"per_component": False}, {"normalization": None}, {"normalization": "rw"}):
        together = pe64(batch_of(members), 4, **options)
        alone = [pe64(member, 4, **options) for member in members]
        for field in LaplacianEncoding._fields:
            assert torch.equal(getattr(together, field), torch.cat([getattr(x, field) for x in alone])), field


@SOLVED_BY
def test_renumbered_tokens_keep_their_rows(graph_of, size, solver):
    nx_graph = nx.connected_watts_strogatz_graph(size, 4, 0.4, seed=7)
    graph, order = graph_of(nx_graph), torch.randperm(size)
    renumbered = TokenGraph.from_edge_index(order[graph.edge_index], size)
    found, moved = pe64(graph, 5, solver=solver), pe64(renumbered, 5, solver=solver)
    assert found.group[0].tolist() == list(range(5))  # a simple spectrum
    torch.testing.assert_close(moved.pe[order].abs(), found.pe.abs(), atol=1e-7, rtol=0)


def test_number_of_threads_does_not_matter_and_stays(graph_of):
    graph = graph_of(nx.cycle_graph(101))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((laplacian_pe(graph, 4), random_walk_pe(graph, 6)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_edge_order_does_not_matter(graph_of):
    graph = graph_of(nx.connected_watts_strogatz_graph(70, 4, 0.4, seed=8))
    shuffled = graph.edge_index[:, torch.randperm(graph.num_edges)]
    assert torch.equal(laplacian_pe(TokenGraph.from_edge_index(shuffled, 70), 5), laplacian_pe(graph, 5))


def test_directed_edges_count_both_ways_or_are_refused(graph_of):
    one_way = nx.DiGraph([(0, 1), (1, 2), (2, 3), (3, 1)])
    both_ways = graph_of(nx.Graph(one_way.edges))
    graph = graph_of(one_way)
    assert torch.equal(laplacian_pe(graph, 2), laplacian_pe(both_ways, 2))
    laplacian_pe(both_ways, 2, directed="error")
    with pytest.raises(ArgumentError, match="undirected"):
        laplacian_pe(graph, 2, directed="error")


def test_duplicates_weigh_and_self_loops_do_not(graph_of):
    graph = graph_of(nx.path_graph(5))
    loops = torch.tensor([[0, 2, 2], [0, 2, 2]])
    with_loops = TokenGraph.from_edge_index(torch.cat([graph.edge_index, loops], 1), 5)
    assert torch.equal(laplacian_pe(with_loops, 3), laplacian_pe(graph, 3))
    everything_twice = TokenGraph.from_edge_index(graph.edge_index.repeat(1, 2), 5)
    torch.testing.assert_close(laplacian_pe(everything_twice, 3), laplacian_pe(graph, 3))

    heavy = TokenGraph.from_edge_index(torch.cat([graph.edge_index, torch.tensor([[0, 1], [1, 0]])], 1), 5)
    found, laplacian = pe64(heavy, 3), dense_laplacian(heavy, "sym")
    assert dense_parts(heavy)[0][0, 1] == 2
    assert (laplacian @ found.pe - found.pe * found.eigenvalues).abs().max() < 1e-12


def test_fixed_sign_makes_the_largest_entry_positive(graph_of):
    pe = laplacian_pe(graph_of(nx.connected_watts_strogatz_graph(50, 4, 0.3, seed=4)), 8)
    largest = pe.abs().argmax(0)
    assert (pe[largest, torch.arange(8)] > 0).all()
    # Tied magnitudes: the first token decides.
    path = laplacian_pe(graph_of(nx.path_graph(6)), 1)[:, 0]
    torch.testing.assert_close(path[2:4].abs(), path[2:4].abs().flip(0))
    assert path[path.abs() > path.abs().max() * (1 - 1e-5)][0] > 0


def test_random_signs_are_the_generators(graph_of, batch_of):
    members = [graph_of(nx.path_graph(9)) for _ in range(20)]
    graph = batch_of(members)
    fixed = laplacian_pe(graph, 4).view(20, 9, 4)

    def signs(sign: str, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        ratio = (laplacian_pe(graph, 4, sign=sign, generator=generator).view(20, 9, 4) * fixed).sum(1)
        torch.testing.assert_close(ratio.abs(), torch.ones(20, 4), atol=1e-5, rtol=0)
        return ratio.sign()

    state = torch.get_rng_state()
    per_graph, per_batch = signs("random", 0), signs("random_batch", 0)
    assert torch.equal(per_graph, signs("random", 0))
    assert not torch.equal(per_graph, signs("random", 1))
    assert (per_graph.unique(dim=0).shape[0]) > 3 and per_batch.unique(dim=0).shape[0] == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(laplacian_pe(graph, 4, sign="abs"), laplacian_pe(graph, 4).abs())


def test_dtype_and_return_types(graph_of):
    graph = graph_of(nx.path_graph(5))
    assert laplacian_pe(graph, 2).dtype == torch.float32
    assert laplacian_pe(graph, 2, dtype=torch.bfloat16).dtype == torch.bfloat16
    found = laplacian_pe(graph, 2, return_eigenvalues=True)
    assert isinstance(found, LaplacianEncoding)
    assert (found.pe.dtype, found.eigenvalues.dtype, found.group.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"k": 0}, ArgumentError, "k must be at least 1, got 0"),
        ({"k": 2.0}, ArgumentTypeError, "k must be an int, got 2.0"),
        ({"k": True}, ArgumentTypeError, "k must be an int"),
        ({"normalization": "l2"}, ArgumentError, "normalization must be one of 'sym', 'rw', None, got 'l2'"),
        ({"sign": "flip"}, ArgumentError, "sign must be one of"),
        ({"solver": "arpack"}, ArgumentError, "solver must be one of"),
        ({"directed": True}, ArgumentError, "directed must be one of"),
        ({"dtype": torch.int64}, ArgumentTypeError, "dtype must be a floating torch dtype"),
        ({"sign": "random"}, ArgumentError, "needs a generator"),
        ({"graph": "edges"}, ArgumentTypeError, "graph must be a TokenGraph, got str"),
        (
            {"graph": TokenGraph.from_edge_index(torch.tensor([[0], [0]]), num_targets=2, num_sources=3)},
            ArgumentError,
            "graph must be square",
        ),
    ],
)
def test_bad_input(graph_of, options, error, text):
    arguments = {"graph": graph_of(nx.path_graph(5)), "k": 2, **options}
    with pytest.raises(error, match=text):
        laplacian_pe(**arguments)


def test_an_edge_between_members_is_refused():
    graph = TokenGraph.from_edge_index(
        torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 4, ptr=torch.tensor([0, 2, 4]), validate=False
    )
    with pytest.raises(ArgumentError, match="between its members"):
        laplacian_pe(graph, 1, per_component=False)


@pytest.mark.parametrize(
    "nx_graph",
    [nx.star_graph(400), nx.convert_node_labels_to_integers(nx.grid_2d_graph(20, 20, periodic=True))],
    ids=["star: 399 times", "torus: 4 times"],
)
def test_sparse_solver_misses_no_copy_of_a_repeated_eigenvalue(graph_of, nx_graph):
    graph = graph_of(nx_graph)
    found = pe64(graph, 6, solver="sparse")
    expected = torch.linalg.eigvalsh(dense_laplacian(graph, "sym"))[1:7]
    torch.testing.assert_close(found.eigenvalues[0], expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.pe.T @ found.pe, torch.eye(6, dtype=torch.float64), atol=1e-10, rtol=0)


def test_sparse_solver_finds_every_component():
    """As many eigenvalues 0 as components: the vector that finds one has no part in the others."""
    for seed in range(12):
        edges = torch.randint(80, (2, 60), generator=torch.Generator().manual_seed(seed))
        graph = TokenGraph.from_edge_index(edges, 80)
        found = pe64(graph, 8, normalization=None, per_component=False, solver="sparse")
        torch.testing.assert_close(found.eigenvalues, torch.zeros(80, 8, dtype=torch.float64), atol=1e-10, rtol=0)


def test_patterns_are_graphs_too():
    from graphattn.graph import patterns

    grid = laplacian_pe(patterns.grid(3, 5), 1)[:, 0].view(3, 5)
    torch.testing.assert_close(grid[:, 0], -grid[:, -1])
    assert (grid[:, 0].abs() > 0.1).all()
