"""Graphs inside compiled and exported code."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from graphattn.graph import TokenGraph, as_token_graph, blocks, hubs, window
from graphattn.testing import random_graph, require_or_skip


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def compiled(function: Callable) -> tuple[Callable, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, dynamic=True, backend=counter), counter


def read(graph: TokenGraph, x: Tensor) -> Tensor:
    """Something that needs both views and the caller's order."""
    out = torch.zeros_like(x).index_add(0, graph.row.long(), x[graph.col.long()])
    return out + x.index_add(0, graph.edge_index[0], x[graph.edge_index[1]]) + graph.csc.row.sum()


def build(edge_index: Tensor, x: Tensor) -> Tensor:
    return read(as_token_graph(edge_index, num_targets=x.shape[0], num_sources=x.shape[0]), x)


def build_validated(edge_index: Tensor, x: Tensor) -> Tensor:
    return read(TokenGraph.from_edge_index(edge_index, x.shape[0], validate=True), x)


def build_batch(edge_index: Tensor, x: Tensor, ptr: Tensor) -> Tensor:
    graph = TokenGraph.from_edge_index(edge_index, x.shape[0], ptr=ptr)
    return read(graph, x) + graph.target_batch[:, None]


@pytest.mark.parametrize("function", [build, build_validated])
def test_building_compiles_once_for_all_sizes(function: Callable) -> None:
    fast, counter = compiled(function)
    for tokens, edges in ((5, 9), (12, 31), (40, 7)):
        edge_index, x = torch.randint(0, tokens, (2, edges)), torch.randn(tokens, 3)
        torch.testing.assert_close(fast(edge_index, x), function(edge_index, x))
    assert counter.frame_count == 1


def test_building_a_batch_compiles() -> None:
    fast, counter = compiled(build_batch)
    for sizes in ([2, 3], [4, 1, 6], [1, 9, 2, 2]):
        graph = TokenGraph.batch([window(size, 1) for size in sizes])
        arguments = graph.edge_index, torch.randn(graph.num_tokens, 7), graph.target_ptr
        torch.testing.assert_close(fast(*arguments), build_batch(*arguments))
    assert counter.frame_count == 1


@pytest.mark.parametrize("order", [None, "col"])
def test_edge_index_class_compiles(order: str | None) -> None:
    EdgeIndex = require_or_skip("pyg").EdgeIndex
    edge_index, x = torch.randint(0, 12, (2, 31)), torch.randn(12, 3)
    if order == "col":
        edge_index = edge_index[:, edge_index[1].argsort()]
    given = EdgeIndex(edge_index, sort_order=order, sparse_size=(12, 12))
    fast, _ = compiled(build)
    torch.testing.assert_close(fast(given, x), build(edge_index, x))


MAKERS: dict[str, Callable[[int], TokenGraph]] = {
    "explicit": lambda n: TokenGraph.from_edge_index(torch.randint(0, n, (2, 3 * n)), n),
    "window": lambda n: window(n, 2),
    "blocks": lambda n: blocks([0, 2, n]),
    # What a combination lists depends on data: that is done before.
    "prepared union": lambda n: (window(n, 2) | hubs(n, 1)).prepare(),
    "prepared explicit": lambda n: TokenGraph.from_edge_index(torch.randint(0, n, (2, 3 * n)), n).prepare(),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_graphs_are_inputs(kind: str) -> None:
    fast, _ = compiled(read)
    for tokens in (5, 9, 14):
        graph, x = MAKERS[kind](tokens), torch.randn(tokens, 3)
        expected = read(copy.deepcopy(graph), x)  # reading lists the edges of a pattern
        torch.testing.assert_close(fast(graph, x), expected)


def test_rules_compile() -> None:
    fast, counter = compiled(lambda graph, target, source: graph.contains(target, source))
    pattern = window(30, 2, 3) | hubs(30, 2)
    for size in (4, 9, 17):
        target, source = torch.randint(0, 30, (size, 1)), torch.randint(0, 30, (size + 1,))
        assert torch.equal(fast(pattern, target, source), pattern.contains(target, source))
    assert counter.frame_count == 1


class Reader(torch.nn.Module):
    def forward(self, graph: TokenGraph, x: Tensor) -> Tensor:
        return read(graph, x)


class Builder(torch.nn.Module):
    def forward(self, edge_index: Tensor, x: Tensor) -> Tensor:
        return build(edge_index, x)


def reloaded(program: torch.export.ExportedProgram) -> torch.nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize(
    "graph",
    [random_graph(0), random_graph(0, "batch"), window(6, 2), (window(6, 1) | hubs(6, 1)).prepare(), blocks([0, 2, 6])],
    ids=["explicit", "batch", "window", "union", "blocks"],
)
def test_graphs_are_exported_inputs(graph: TokenGraph) -> None:
    x = torch.randn(graph.num_tokens, 3)
    program = torch.export.export(Reader(), (graph, x))
    torch.testing.assert_close(reloaded(program)(graph, x), read(graph, x))


def test_building_exports_with_dynamic_sizes() -> None:
    tokens, edges = torch.export.Dim("tokens", min=2), torch.export.Dim("edges", min=2)
    example = torch.randint(0, 6, (2, 11)), torch.randn(6, 3)
    program = torch.export.export(Builder(), example, dynamic_shapes=({1: edges}, {0: tokens}))
    module = reloaded(program)
    for n, e in ((6, 11), (15, 40), (30, 8)):
        edge_index, x = torch.randint(0, n, (2, e)), torch.randn(n, 3)
        torch.testing.assert_close(module(edge_index, x), build(edge_index, x))
