"""torch-scatter's conventions: its CSR pointers are ours, and its segment operations give our numbers.

The package itself is never needed. Where it is missing, what its documentation says stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, attend
from graphattn.graph import as_token_graph, sparse_values
from graphattn.kernels import segment_softmax, segment_sum, spmm, spread
from graphattn.testing import GRAPH_KINDS, random_graph, require_or_skip


class StandIn:
    """``torch_scatter`` by its documentation, one segment after another."""

    @staticmethod
    def segment_csr(src: Tensor, indptr: Tensor, reduce: str = "sum") -> Tensor:
        assert reduce == "sum"
        bounds = indptr.tolist()
        rows = [src[first:last].sum(0) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]
        return torch.stack(rows) if rows else src.new_zeros(0, *src.shape[1:])

    @staticmethod
    def gather_csr(src: Tensor, indptr: Tensor) -> Tensor:
        return src.repeat_interleave(indptr.diff(), 0)

    @staticmethod
    def scatter(src: Tensor, index: Tensor, dim: int, dim_size: int, reduce: str = "sum") -> Tensor:
        assert dim == 0 and reduce == "sum"
        return torch.stack([src[index == row].sum(0) for row in range(dim_size)])

    @staticmethod
    def scatter_softmax(src: Tensor, index: Tensor, dim: int) -> Tensor:
        assert dim == 0
        out = torch.empty_like(src)
        for row in index.unique().tolist():
            out[index == row] = src[index == row].softmax(0)
        return out


@pytest.fixture(params=["stand-in", "torch_scatter"])
def scatter(request: pytest.FixtureRequest) -> Any:
    return StandIn if request.param == "stand-in" else require_or_skip("scatter")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_segment_operations(scatter: Any, dtype: torch.dtype) -> None:
    for kind in GRAPH_KINDS:
        check_segment_operations(scatter, random_graph(2, kind, bipartite=True), dtype)


def check_segment_operations(scatter: Any, graph: TokenGraph, dtype: torch.dtype) -> None:
    # torch-scatter wants edges sorted by target.
    graph = TokenGraph.from_csr(graph.rowptr.long(), graph.col.long(), num_sources=graph.num_sources)
    indptr, (source, target) = graph.rowptr, graph.edge_index
    scores = torch.randn(graph.num_edges, 2, dtype=dtype)
    values = torch.randn(graph.num_sources, 2, 3, dtype=dtype)

    weights, _ = segment_softmax(graph.structure, scores)
    torch.testing.assert_close(weights, scatter.scatter_softmax(scores, target, dim=0))
    torch.testing.assert_close(segment_sum(graph.structure, scores), scatter.segment_csr(scores, indptr, reduce="sum"))
    summed = segment_sum(graph.structure, scores)
    torch.testing.assert_close(spread(graph.structure, summed), scatter.gather_csr(summed, indptr))
    messages = weights.unsqueeze(-1) * values[source]
    expected = scatter.segment_csr(messages, indptr, reduce="sum")
    torch.testing.assert_close(spmm(graph.structure, weights, values), expected)
    torch.testing.assert_close(attend(graph, None, None, values, score=scores), expected)


def test_edges_in_any_order(scatter: Any) -> None:
    """``scatter`` and ``scatter_softmax`` take edges as they come, and so do we."""
    for kind in GRAPH_KINDS:
        graph = random_graph(3, kind)
        source, target = graph.edge_index
        scores = torch.randn(graph.num_edges, 2, dtype=torch.float64)
        values = torch.randn(graph.num_sources, 2, 3, dtype=torch.float64)
        weights, _ = segment_softmax(graph.structure, scores)
        torch.testing.assert_close(weights, scatter.scatter_softmax(scores, target, dim=0))
        messages = weights.unsqueeze(-1) * values[source]
        expected = scatter.scatter(messages, target, dim=0, dim_size=graph.num_targets, reduce="sum")
        torch.testing.assert_close(spmm(graph.structure, weights, values), expected)


def test_a_real_sparse_tensor() -> None:
    """torch-sparse is torch-scatter's companion; its ``SparseTensor`` holds the transposed adjacency."""
    SparseTensor = require_or_skip("torch_sparse").SparseTensor
    require_or_skip("pyg")
    from graphattn.conv import TransformerConv

    graph = random_graph(0)
    source, target = graph.edge_index
    value = torch.rand(graph.num_edges)
    adj_t = SparseTensor(row=target, col=source, value=value, sparse_sizes=(graph.num_targets, graph.num_sources))
    found = as_token_graph(adj_t)
    assert torch.equal(found.to_dense(), graph.to_dense())
    dense = torch.zeros(graph.num_targets, graph.num_sources).index_put_((target, source), value)
    assert torch.equal(dense[found.edge_index[1], found.edge_index[0]], sparse_values(adj_t))
    conv, x = TransformerConv(4, 3, heads=2), torch.randn(graph.num_tokens, 4)
    torch.testing.assert_close(conv(x, adj_t), conv(x, graph.edge_index))


@pytest.mark.parametrize("operation", [segment_softmax, segment_sum], ids=lambda f: f.__name__)
def test_gradients(scatter: Any, operation: Callable) -> None:
    graph = random_graph(5, "hub")
    graph = TokenGraph.from_csr(graph.rowptr.long(), graph.col.long())
    scores = torch.randn(graph.num_edges, 2, dtype=torch.float64, requires_grad=True)
    if operation is segment_softmax:
        found, expected = operation(graph.structure, scores)[0], scatter.scatter_softmax(scores, graph.edge_index[1], 0)
    else:
        found, expected = operation(graph.structure, scores), scatter.segment_csr(scores, graph.rowptr)
    down = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((expected * down).sum(), scores)
    (got,) = torch.autograd.grad((found * down).sum(), scores)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
