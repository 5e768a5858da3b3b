"""DGL's graphs: both ways, in every format and of every kind that DGL knows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, dgl_graphs, window
from graphattn.testing import random_graph, require_or_skip

dgl = require_or_skip("dgl")


def assert_same(result: TokenGraph, expected: TokenGraph) -> None:
    """The very same arrays, but for their integer type."""
    assert (result.num_targets, result.num_sources) == (expected.num_targets, expected.num_sources)
    assert torch.equal(result.edge_index, expected.edge_index)
    for name in ("rowptr", "col", "row"):
        assert torch.equal(getattr(result, name).long(), getattr(expected, name).long()), name
    for found, wanted in zip(result.csc, expected.csc, strict=True):
        assert torch.equal(found.long(), wanted.long())
    order = torch.arange(expected.num_edges)
    edge_ids = [order if graph.edge_id is None else graph.edge_id.long() for graph in (result, expected)]
    assert torch.equal(*edge_ids)


def by_member(graph: TokenGraph) -> TokenGraph:
    """DGL keeps the edges of a member together."""
    return graph if graph.target_ptr is None else TokenGraph.batch(graph.unbatch())


@pytest.mark.parametrize("idtype", [torch.int64, torch.int32], ids=str)
def test_there_and_back(graph: TokenGraph, idtype: torch.dtype) -> None:
    graph = by_member(graph)
    theirs = graph.to_dgl(idtype)
    assert theirs.idtype == idtype
    assert torch.equal(torch.stack(theirs.edges(order="eid")).long(), graph.edge_index)
    assert theirs.num_edges() == graph.num_edges
    again = TokenGraph.from_dgl(theirs)
    assert_same(again, graph)
    assert torch.equal(again.target_batch, graph.target_batch) and again.num_members == graph.num_members
    if graph.target_ptr is not None and graph.is_square:
        for part, member in zip(dgl.unbatch(theirs), graph.unbatch(), strict=True):
            assert_same(TokenGraph.from_dgl(part), member)


@pytest.mark.parametrize("form", [None, "coo", "csr", "csc"])
@pytest.mark.parametrize("created", [False, True])
def test_every_format(graph: TokenGraph, form: str | None, created: bool) -> None:
    """Made from a list of edges in any order; DGL keeps ids for the formats that it sorts."""
    graph = by_member(graph)
    source, target = graph.edge_index
    sizes = {"s": graph.num_sources, "t": graph.num_targets}
    theirs = dgl.heterograph({("s", "to", "t"): (source, target)}, sizes)
    if form is not None:
        theirs = theirs.formats(form)
    if created:
        theirs.create_formats_()
    result = TokenGraph.from_dgl(theirs)
    assert_same(result, graph)


@pytest.mark.parametrize("idtype", [torch.int64, torch.int32], ids=str)
def test_csc_is_taken_as_it_is(idtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.tensor([0, 0, 1, 3, 3], dtype=idtype)
    theirs = dgl.graph((source, torch.tensor([2, 1, 1, 1, 2], dtype=idtype)), num_nodes=4)
    theirs.create_formats_()
    rowptr, col, edge_id = theirs.adj_tensors("csc")
    monkeypatch.setattr(torch, "sort", None)
    graph = TokenGraph.from_dgl(theirs)
    for found, given in zip(graph.csr, (rowptr, col, edge_id), strict=True):
        assert found.data_ptr() == given.data_ptr() and found.dtype == idtype
    assert graph.edge_index.tolist() == [[0, 0, 1, 3, 3], [2, 1, 1, 1, 2]]


def test_csc_whose_duplicates_stand_in_another_order_is_sorted() -> None:
    """Of the two edges 0 -> 0, the one with the smaller id comes first, as in any other graph."""
    arrays = torch.tensor([0, 2, 3]), torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])
    result = TokenGraph.from_dgl(dgl.graph(("csc", arrays)))
    assert_same(result, TokenGraph.from_edge_index(torch.tensor([[0, 1, 0], [0, 1, 0]])))


def test_our_sorted_edges_are_handed_on() -> None:
    graph = random_graph(1, "dense")
    theirs = graph.to_dgl(graph.col.dtype)
    assert theirs.formats()["created"] == ["csc"]
    assert theirs.adj_tensors("csc")[1].data_ptr() == graph.col.data_ptr()
    assert window(4, 1).to_dgl().num_edges() == window(4, 1).num_edges


def test_reads_in_our_direction() -> None:
    graph = TokenGraph.from_edge_index(torch.randint(0, 7, (2, 20)), 7)
    theirs, x = graph.to_dgl(), torch.rand(7, 3)
    theirs.ndata["x"] = x
    theirs.update_all(dgl.function.copy_u("x", "m"), dgl.function.sum("m", "out"))
    torch.testing.assert_close(theirs.ndata["out"], graph.to_torch_sparse() @ x)


def edges(count: int, sources: int, targets: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, sources, (count,)), torch.randint(0, targets, (count,))


def hetero() -> Any:
    return dgl.heterograph(
        {
            ("user", "follows", "user"): edges(9, 5, 5),
            ("user", "rates", "item"): edges(8, 5, 3),
            ("shop", "rates", "item"): edges(4, 2, 3),
        },
        {"user": 5, "item": 3, "shop": 2},
    )


def test_heterogeneous() -> None:
    graph = hetero()
    for edge_type in [*graph.canonical_etypes, "follows"]:
        found = TokenGraph.from_dgl(graph, edge_type)
        assert torch.equal(found.edge_index, torch.stack(graph.edges(etype=edge_type, order="eid")))
        relation = graph[edge_type]
        assert (found.num_sources, found.num_targets) == (relation.num_src_nodes(), relation.num_dst_nodes())
    for edge_type, text in (
        (None, "must have one edge type, got 3; give edge_type"),
        ("rates", "its middle name if that is unique"),
    ):
        with pytest.raises(ArgumentError, match=text):
            TokenGraph.from_dgl(graph, edge_type)
    whole = TokenGraph.from_dgl(dgl.to_homogeneous(graph))
    assert whole.num_tokens == 10 and whole.num_edges == 21


def test_heterogeneous_batch_keeps_its_members() -> None:
    parts = [hetero(), hetero()]
    batch = dgl.batch(parts)
    for edge_type in batch.canonical_etypes:
        found = TokenGraph.from_dgl(batch, edge_type)
        assert found.num_members == 2
        for member, part in zip(found.unbatch(), parts, strict=True):
            assert_same(member, TokenGraph.from_dgl(part, edge_type))
    assert dgl_graphs.from_dgl(batch, "follows", members=False).num_members == 1


def test_isolated_node_types_are_not_counted() -> None:
    graph = dgl.heterograph({("a", "x", "b"): edges(4, 2, 3)}, {"a": 2, "b": 3, "c": 7})
    result = TokenGraph.from_dgl(graph)
    assert (result.num_sources, result.num_targets) == (2, 3)
    one_sided = TokenGraph.from_dgl(dgl.heterograph({("a", "x", "a"): edges(4, 2, 2)}, {"a": 2, "c": 7}))
    assert one_sided.num_tokens == 2


def test_blocks() -> None:
    graph = dgl.rand_graph(30, 90)
    block = dgl.to_block(dgl.in_subgraph(graph, torch.arange(8)), torch.arange(8))
    result = TokenGraph.from_dgl(block)
    assert torch.equal(result.edge_index, torch.stack(block.edges(order="eid")))
    assert (result.num_sources, result.num_targets) == (block.num_src_nodes(), 8)
    # DGL numbers targets that it was not told of -1, and its own layers read beyond their memory.
    broken = dgl.to_block(dgl.graph(([0, 1], [1, 2])), torch.tensor([1]))
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"edge_index\[1\] \(target\) must lie in 0..0 .* got -1"):
            TokenGraph.from_dgl(broken)


def test_batch_with_empty_members() -> None:
    parts = [dgl.graph(([0, 1], [1, 0])), dgl.graph(([], []), num_nodes=3), dgl.graph(([], [])), dgl.rand_graph(4, 5)]
    found = TokenGraph.from_dgl(dgl.batch(parts))
    assert found.target_ptr.tolist() == [0, 2, 5, 5, 9] and found.source_ptr is found.target_ptr
    assert [member.num_edges for member in found.unbatch()] == [2, 0, 0, 5]


def test_batch_of_bipartite_graphs_that_is_square_in_all() -> None:
    parts = [random_graph(seed, bipartite=True) for seed in range(2)]
    parts[1] = parts[1].T
    graph = TokenGraph.batch([parts[0], parts[0].T])
    assert graph.is_square
    again = TokenGraph.from_dgl(graph.to_dgl())
    assert_same(again, graph)
    assert torch.equal(again.target_ptr, graph.target_ptr) and torch.equal(again.source_ptr, graph.source_ptr)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: TokenGraph.from_dgl(3), ArgumentTypeError, "graph must be a DGLGraph, got int"),
        (lambda: TokenGraph.from_dgl(dgl.rand_graph(3, 3), "x"), ArgumentError, "edge_type must be one of .* got 'x'"),
        (lambda: window(3, 1).to_dgl(torch.float32), ArgumentError, "idtype must be torch.int64 or torch.int32"),
        (lambda: TokenGraph.per_head([window(3, 1)] * 2).to_dgl(), ArgumentError, r"leading dimensions, got \[2\]"),
        (
            lambda: TokenGraph.from_edge_index(torch.tensor([[2, 0], [2, 0]]), ptr=torch.tensor([0, 1, 3])).to_dgl(),
            ArgumentError,
            "to_dgl needs the edges of a batch member by member",
        ),
    ],
)
def test_bad_arguments(call: Callable, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_members_that_edges_leave_are_refused() -> None:
    graph = dgl.graph(([0, 1], [1, 0]))
    graph.set_batch_num_nodes(torch.tensor([1, 1]))
    graph.set_batch_num_edges(torch.tensor([1, 1]))
    with pytest.raises(ArgumentError, match="no edge may join two members"):
        TokenGraph.from_dgl(graph)


def test_import_writes_nothing_and_prints_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DGL")}
    done = subprocess.run(
        [sys.executable, "-c", "from graphattn import patterns\nprint(patterns.window(4, 1).to_dgl().num_nodes())"],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "HOME": str(tmp_path)},
    )
    assert done.stdout.split() == ["4"] and "DGL" not in done.stderr
    assert not list(tmp_path.iterdir())
