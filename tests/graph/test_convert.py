"""Conversions: what goes out comes back, and edges keep their direction and order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError, MissingPackageError
from graphattn.graph import TokenGraph, as_token_graph, sparse_values, window
from graphattn.testing import random_graph, require_or_skip

LAYOUTS = (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo)
LOPSIDED = torch.tensor([[0, 2, 0], [2, 1, 1]])  # 0 -> 2, 2 -> 1, 0 -> 1


class SparseTensor:
    """As much of torch_sparse.SparseTensor as a reader needs."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def csr(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._matrix.crow_indices(), self._matrix.col_indices(), self._matrix.values()

    def sparse_sizes(self) -> tuple[int, int]:
        return tuple(self._matrix.shape)


def assert_same(first: TokenGraph, second: TokenGraph, counts: Callable) -> None:
    assert (first.num_targets, first.num_sources) == (second.num_targets, second.num_sources)
    assert torch.equal(counts(first), counts(second))


# --- matrices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_torch_sparse(graph: TokenGraph, layout: torch.layout, counts: Callable) -> None:
    values = torch.rand(graph.num_edges, dtype=torch.float64)
    matrix = graph.to_torch_sparse(values, layout)
    assert matrix.layout == layout and matrix.shape == (graph.num_targets, graph.num_sources)
    source, target = graph.edge_index
    dense = torch.zeros(matrix.shape, dtype=torch.float64).index_put_((target, source), values, accumulate=True)
    torch.testing.assert_close(matrix.to_dense(), dense)

    again = TokenGraph.from_adj_t(matrix)
    # A COO matrix sums duplicates, the others keep them.
    assert_same(again, graph.coalesce() if layout == torch.sparse_coo else graph, counts)
    source, target = again.edge_index
    found = torch.zeros_like(dense).index_put_((target, source), sparse_values(matrix), accumulate=True)
    torch.testing.assert_close(found, dense)
    assert torch.equal(TokenGraph.from_adj(matrix).edge_index, again.edge_index.flip(0))


def test_csr_is_taken_as_it_is() -> None:
    matrix = torch.eye(3).to_sparse_csr()
    graph = TokenGraph.from_adj_t(matrix)
    assert graph.col.data_ptr() == matrix.col_indices().data_ptr() and graph.edge_id is None
    assert graph.to_torch_sparse(matrix.values()).values().data_ptr() == matrix.values().data_ptr()


def test_csr_with_unsorted_rows_keeps_its_stored_order() -> None:
    matrix = torch.sparse_csr_tensor(
        torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1]), torch.tensor([5.0, 6, 7]), (2, 3), check_invariants=False
    )
    graph = TokenGraph.from_adj_t(matrix)
    assert graph.edge_index.tolist() == [[2, 0, 1], [0, 0, 1]] and sparse_values(matrix).tolist() == [5, 6, 7]
    assert graph.col.tolist() == [0, 2, 1]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_reach_the_values(layout: torch.layout) -> None:
    values = torch.rand(3, dtype=torch.float64, requires_grad=True)
    matrix = TokenGraph.from_edge_index(LOPSIDED).to_torch_sparse(values, layout)
    sparse_values(matrix).square().sum().backward()
    torch.testing.assert_close(values.grad, 2 * values.detach())


def test_uncoalesced_coo_is_a_sum() -> None:
    matrix = torch.sparse_coo_tensor([[1, 0, 1], [0, 1, 0]], [1.0, 2, 3], (2, 2), check_invariants=True)
    assert TokenGraph.from_adj_t(matrix).edge_index.tolist() == [[1, 0], [0, 1]]
    assert sparse_values(matrix).tolist() == [2, 4]


def test_sparse_tensor(graph: TokenGraph, counts: Callable) -> None:
    values = torch.rand(graph.num_edges)
    matrix = SparseTensor(graph.to_torch_sparse(values))
    again = TokenGraph.from_adj_t(matrix)
    assert_same(again, graph, counts)
    assert again.edge_id is None and torch.equal(sparse_values(matrix), matrix.csr()[2])


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok"])
def test_scipy(graph: TokenGraph, form: str, counts: Callable) -> None:
    matrix = graph.to_scipy(1 + torch.arange(graph.num_edges))
    again = TokenGraph.from_adj_t(matrix)
    assert_same(again, graph, counts)
    matrix.sum_duplicates()
    matrix = matrix.asformat(form)
    again, values = TokenGraph.from_adj_t(matrix), sparse_values(matrix)
    assert_same(again, graph.coalesce(), counts)
    source, target = again.edge_index
    assert torch.equal(torch.from_numpy(matrix.toarray())[target, source], values)


def test_scipy_cannot_change_a_graph(counts: Callable) -> None:
    graph = random_graph(0, "duplicates")
    before = counts(graph)
    matrix = graph.to_scipy()
    again = TokenGraph.from_adj_t(matrix)
    matrix.sum_duplicates()
    matrix.indices[:] = 0
    matrix.data[:] = 0
    matrix.eliminate_zeros()
    assert torch.equal(counts(graph), before) and torch.equal(counts(again), before)


def test_dense_mask(graph: TokenGraph, counts: Callable) -> None:
    mask = graph.to_dense()
    assert torch.equal(mask, counts(graph) > 0)
    for given in (mask, mask.numpy()):
        again = TokenGraph.from_adj_t(given)
        assert_same(again, graph.coalesce(), counts)
        assert torch.equal(again.edge_index, graph.coalesce().edge_index), "row-major"
    assert torch.equal(TokenGraph.from_adj(mask).to_dense(), mask.T)
    assert sparse_values(mask) is None


def test_direction_of_matrices() -> None:
    # adj_t[target, source]: row 1 reads tokens 0 and 2, row 2 reads token 0.
    adj_t = torch.tensor([[0, 0, 0], [1, 0, 1], [1, 0, 0]], dtype=torch.bool)
    expected = sorted(LOPSIDED.t().tolist())
    for matrix in (adj_t, *(adj_t.float().to_sparse(layout=layout) for layout in LAYOUTS)):
        assert sorted(TokenGraph.from_adj_t(matrix).edge_index.t().tolist()) == expected
    for matrix in (adj_t.T, *(adj_t.T.float().to_sparse(layout=layout) for layout in LAYOUTS)):
        assert sorted(TokenGraph.from_adj(matrix).edge_index.t().tolist()) == expected


# --- PyG ------------------------------------------------------------------------------------------------------


def test_pyg_data(graph: TokenGraph) -> None:
    require_or_skip("pyg")
    if not graph.is_square:
        with pytest.raises(ArgumentError, match="to_pyg needs a square graph"):
            graph.to_pyg()
        return
    attributes = {"x": torch.rand(graph.num_tokens, 3), "edge_attr": torch.rand(graph.num_edges, 2)}
    data = graph.to_pyg(**attributes)
    assert data.validate() and getattr(data, "num_graphs", 1) == graph.num_members
    assert torch.equal(data.edge_attr, attributes["edge_attr"])
    for again in (TokenGraph.from_pyg(data), as_token_graph(data)):
        assert torch.equal(again.edge_index, graph.edge_index) and again.num_tokens == graph.num_tokens
        assert torch.equal(again.target_batch, graph.target_batch) and again.num_members == graph.num_members


def test_pyg_batch_and_its_pieces() -> None:
    require_or_skip("pyg")
    from torch_geometric.data import Batch, Data, HeteroData
    from torch_geometric.transforms import ToSparseTensor

    parts = [random_graph(seed) for seed in range(3)]
    batch = Batch.from_data_list([part.to_pyg(edge_weight=torch.rand(part.num_edges)) for part in parts])
    expected = TokenGraph.batch(parts)
    graph = TokenGraph.from_pyg(batch)
    assert torch.equal(graph.edge_index, expected.edge_index) and torch.equal(graph.target_ptr, expected.target_ptr)

    only_batch = Data(edge_index=batch.edge_index, num_nodes=batch.num_nodes, batch=batch.batch)
    assert torch.equal(TokenGraph.from_pyg(only_batch).target_ptr, expected.target_ptr)
    only_batch.batch = batch.batch.flip(0)
    with pytest.raises(ArgumentError, match="data.batch must ascend"):
        TokenGraph.from_pyg(only_batch)

    sparse = ToSparseTensor(layout=torch.sparse_csr)(batch.clone())
    assert torch.equal(TokenGraph.from_pyg(sparse).to_dense(), expected.to_dense())

    hetero = HeteroData()
    hetero["a"].num_nodes = 3
    hetero["a", "to", "a"].edge_index = LOPSIDED
    with pytest.raises(ArgumentTypeError, match="got HeteroData; give one edge type of it"):
        TokenGraph.from_pyg(hetero)


@pytest.mark.parametrize("order", ["row", "col", None])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_edge_index_class(graph: TokenGraph, order: str | None, cached: bool, sized: bool) -> None:
    EdgeIndex = require_or_skip("pyg").EdgeIndex
    edge_index = graph.edge_index
    if order is not None:
        edge_index = edge_index[:, edge_index[0 if order == "row" else 1].argsort(stable=True)]
    size = (graph.num_sources, graph.num_targets) if sized else None
    given = EdgeIndex(edge_index, sparse_size=size, sort_order=order)
    if cached and order is not None:
        given.fill_cache_()
    sizes = {} if sized else {"num_targets": graph.num_targets, "num_sources": graph.num_sources}
    ptr = graph.target_ptr if graph.is_square else None
    result = as_token_graph(given, **sizes, ptr=ptr)
    assert torch.equal(result.edge_index, edge_index)
    assert (result.num_targets, result.num_sources) == (graph.num_targets, graph.num_sources)
    plain = TokenGraph.from_edge_index(edge_index, num_targets=graph.num_targets, num_sources=graph.num_sources)
    assert torch.equal(result.rowptr.long(), plain.rowptr.long()) and torch.equal(result.col.long(), plain.col.long())
    assert torch.equal(result.csc.row.long(), plain.csc.row.long())
    assert result.num_members == (1 if ptr is None else graph.num_members)
    assert type(result.col) is type(result.rowptr) is Tensor


def test_edge_index_class_is_not_sorted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    EdgeIndex = require_or_skip("pyg").EdgeIndex
    by_target = EdgeIndex(random_graph(0).coalesce().edge_index, sort_order="col", sparse_size=(20, 20))
    ring = torch.stack([torch.arange(20), torch.randperm(20)])
    by_source = EdgeIndex(ring, sort_order="row", sparse_size=(20, 20))
    by_source.fill_cache_()
    monkeypatch.setattr(torch, "sort", None)
    monkeypatch.setattr(Tensor, "sort", None)
    assert as_token_graph(by_target).edge_id is None
    assert as_token_graph(by_target).col.data_ptr() == by_target.as_tensor()[0].data_ptr()
    assert as_token_graph(by_source).edge_id.data_ptr() == by_source._T_perm.data_ptr()


# --- as_token_graph -------------------------------------------------------------------------------------------


def test_every_form_is_one_graph(counts: Callable) -> None:
    graph = TokenGraph.from_edge_index(LOPSIDED, 3)
    assert as_token_graph(graph, num_targets=3, num_sources=3) is graph
    assert as_token_graph(window(3, 1)).pattern is not None
    forms = [LOPSIDED, LOPSIDED.int(), graph.to_dense(), graph.to_scipy(), SparseTensor(graph.to_torch_sparse())]
    forms += [graph.to_torch_sparse(layout=layout) for layout in LAYOUTS]
    for edges in forms:
        assert_same(as_token_graph(edges, num_targets=3, num_sources=3), graph, counts)
    batch = as_token_graph(LOPSIDED, ptr=torch.tensor([0, 3, 3]))
    assert batch.num_members == 2
    assert as_token_graph(graph.to_dense(), ptr=torch.tensor([0, 3, 3])).num_members == 2


@pytest.mark.parametrize(
    ("edges", "arguments", "error", "text"),
    [
        ("edges", {}, ArgumentTypeError, r"edges must be a TokenGraph, an edge_index \[2, E\], .* got str"),
        (np.zeros((2, 3), dtype=np.int64), {}, ArgumentTypeError, "edges must be .* got ndarray"),
        (SimpleNamespace(num_nodes=3, edge_index=None), {}, ArgumentTypeError, "got SimpleNamespace"),
        (torch.rand(3, 3), {}, ArgumentTypeError, "edge_index must be int64 .*got torch.float32"),
        (window(4, 1), {"num_targets": 5}, ArgumentError, "edges must have num_targets targets, 5, .* say 4"),
        (
            torch.ones(3, 4).bool(),
            {"num_sources": 3},
            ArgumentError,
            "edges must have num_sources sources, 3, .* say 4",
        ),
        (LOPSIDED, {"num_targets": 2, "num_sources": 3}, ArgumentError, r"edge_index\[1\] \(target\) must lie in 0..1"),
        (torch.ones(3, 3).bool(), {"ptr": torch.tensor([0, 1, 3])}, ArgumentError, "no edge may join two members"),
    ],
)
def test_as_token_graph_refuses(edges: Any, arguments: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        as_token_graph(edges, **arguments)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda g: TokenGraph.from_adj_t("x"),
            ArgumentTypeError,
            "adjacency must be a torch.sparse matrix, .* got str",
        ),
        (lambda g: TokenGraph.from_adj_t(torch.ones(2, 2)), ArgumentTypeError, "a dense adjacency must be boolean"),
        (lambda g: TokenGraph.from_adj_t(torch.ones(2, 2, 2).bool()), ArgumentError, r"got shape \[2, 2, 2\]; .*per_h"),
        (lambda g: TokenGraph.from_adj_t(coo_array(np.ones((2, 2, 2)))), ArgumentError, r"got shape \[2, 2, 2\]"),
        (lambda g: TokenGraph.from_adj_t(coo_array(np.ones(3))), ArgumentError, r"must be a matrix .* got shape \[3\]"),
        (
            lambda g: TokenGraph.from_adj_t(torch.eye(4).to_sparse_bsr((2, 2))),
            ArgumentTypeError,
            "got torch.sparse_bsr",
        ),
        (lambda g: TokenGraph.from_pyg(3), ArgumentTypeError, "data must be a PyG Data .* got int"),
        (lambda g: g.to_torch_sparse(torch.ones(2)), ArgumentError, r"values must have shape \[3\], got \[2\]"),
        (lambda g: g.to_torch_sparse([1, 2, 3]), ArgumentTypeError, r"values must be a tensor \[E\], got list"),
        (lambda g: g.to_torch_sparse(layout=torch.strided), ArgumentError, "layout must be .* got torch.strided"),
        (lambda g: g.to_scipy(torch.ones(2)), ArgumentError, r"values must have shape \[3\], got \[2\]"),
        (lambda g: TokenGraph.per_head([g, g]).to_scipy(), ArgumentError, r"to_scipy needs .* got \[2\]"),
        (
            lambda g: TokenGraph.per_head([g, g]).to_torch_sparse(),
            ArgumentError,
            "to_torch_sparse needs a graph without",
        ),
    ],
)
def test_bad_arguments(call: Callable, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        call(TokenGraph.from_edge_index(LOPSIDED))


def test_optional_packages_stay_unimported() -> None:
    code = """
import sys, torch
from graphattn.graph import *
from graphattn.graph import TokenGraph, describe
g = TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]))
as_token_graph(g.to_torch_sparse()); as_token_graph(g.edge_index); (g | window(2, 1)).describe()
print(sorted({"torch_geometric", "networkx", "dgl", "matplotlib", "numba", "triton"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("package", "extra"), [("dgl", "dgl"), ("networkx", "nx")])
def test_missing_or_broken_packages_are_one_clear_error(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    graph = TokenGraph.from_edge_index(LOPSIDED)
    convert = {"dgl": graph.to_dgl, "networkx": graph.to_networkx}[package]
    with pytest.raises(MissingPackageError, match=rf'pip install "graphattn\[{extra}\]"'):
        convert()
    monkeypatch.delitem(sys.modules, package)
    (tmp_path / f"{package}.py").write_text("raise FileNotFoundError('libgraphbolt.so')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackageError, match="libgraphbolt.so"):
        convert()
