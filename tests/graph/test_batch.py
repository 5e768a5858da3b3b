"""Ragged batches and leading dimensions: nothing but their members."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, blocks, causal, complete
from graphattn.testing import GRAPH_KINDS, random_graph


@pytest.mark.parametrize("bipartite", [False, True])
def test_batch_is_its_members(bipartite: bool, counts) -> None:
    members = [
        random_graph(seed, kind, bipartite=bipartite) for seed, kind in enumerate(GRAPH_KINDS) if kind != "batch"
    ]
    members += [members[0].coalesce(), TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)]
    batch = TokenGraph.batch(members)

    assert torch.equal(counts(batch), torch.block_diag(*(counts(member) for member in members)))
    starts = torch.tensor([[0, 0], *([member.num_sources, member.num_targets] for member in members)]).cumsum(0)
    shifted = [member.edge_index + start[:, None] for member, start in zip(members, starts, strict=False)]
    assert torch.equal(batch.edge_index, torch.cat(shifted, dim=1)), "edges are the members' one after another"
    assert torch.equal(batch.source_ptr, starts[:, 0]) and torch.equal(batch.target_ptr, starts[:, 1])
    assert batch.num_members == len(members) and (batch.source_ptr is batch.target_ptr) == (not bipartite)

    for member, again in zip(members, batch.unbatch(), strict=True):
        assert torch.equal(again.edge_index, member.edge_index) and torch.equal(counts(again), counts(member))
        assert (again.num_targets, again.num_sources) == (member.num_targets, member.num_sources)
        assert torch.equal(again.rowptr, member.rowptr) and torch.equal(again.col, member.col)


def test_batches_nest(counts) -> None:
    parts = [random_graph(seed) for seed in range(4)]
    nested = TokenGraph.batch([TokenGraph.batch(parts[:2]), parts[2], TokenGraph.batch(parts[3:])])
    flat = TokenGraph.batch(parts)
    assert torch.equal(nested.target_ptr, flat.target_ptr) and torch.equal(nested.edge_index, flat.edge_index)


def test_agrees_with_pyg() -> None:
    data = pytest.importorskip("torch_geometric.data")
    graphs = [random_graph(seed, "duplicates") for seed in range(3)]
    theirs = data.Batch.from_data_list([graph.to_pyg() for graph in graphs])
    ours = TokenGraph.batch(graphs)
    assert torch.equal(ours.edge_index, theirs.edge_index)
    assert torch.equal(ours.target_ptr, theirs.ptr) and torch.equal(ours.target_batch, theirs.batch)


def test_unbatch_of_interleaved_edges() -> None:
    # Edges of the two members take turns; each member keeps its own order.
    edge_index = torch.tensor([[3, 0, 2, 1, 2], [2, 1, 3, 0, 2]])
    first, second = TokenGraph.from_edge_index(edge_index, ptr=torch.tensor([0, 2, 4])).unbatch()
    assert first.edge_index.tolist() == [[0, 1], [1, 0]]
    assert second.edge_index.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_changing_one_member_changes_no_other() -> None:
    graphs = [random_graph(seed) for seed in range(3)]
    before = TokenGraph.batch(graphs)
    graphs[1] = random_graph(7, "dense")
    after = TokenGraph.batch(graphs)
    for member in (0, 2):
        assert torch.equal(before.unbatch()[member].edge_index, after.unbatch()[member].edge_index)


def test_complete_members_make_blocks() -> None:
    batch = TokenGraph.batch([complete(3), complete(0), blocks([0, 2, 3])])
    assert batch.pattern is not None and batch.target_ptr.tolist() == [0, 3, 3, 5, 6]
    explicit = TokenGraph.batch([complete(3).select(torch.ones(9).bool()), complete(0), blocks([0, 2, 3])])
    assert explicit.pattern is None and torch.equal(batch.edge_index, explicit.edge_index)
    assert batch.num_edges == 9 + 4 + 1

    crossed = TokenGraph.batch([complete(2, 3), complete(1, 4)])
    assert crossed.num_edges == 10 and crossed.source_ptr.tolist() == [0, 3, 7]
    assert torch.equal(crossed.to_dense(), torch.block_diag(torch.ones(2, 3), torch.ones(1, 4)).bool())


def test_one_graph_is_its_own_batch() -> None:
    graph = random_graph(0)
    assert torch.equal(TokenGraph.batch([graph]).edge_index, graph.edge_index)
    assert graph.unbatch() == [graph]


def test_per_head(counts) -> None:
    graphs = [random_graph(1, kind).restrict(torch.arange(6)) for kind in ("sparse", "duplicates", "no_edges")]
    heads = TokenGraph.per_head(graphs)
    assert heads.leading == (3,) and heads.leading_axes == "h" and heads.num_copies == 3
    assert heads.num_tokens == 6 and heads.num_edges == sum(graph.num_edges for graph in graphs)
    assert torch.equal(heads.to_dense(), torch.stack([graph.to_dense() for graph in graphs]))
    slices = heads.edge_slices.tolist()
    for head, graph in enumerate(graphs):
        mine = heads.edge_index[:, slices[head] : slices[head + 1]]
        assert torch.equal(mine - 6 * head, graph.edge_index), "copy after copy, each in its own order"
    assert torch.equal(heads.in_degree.view(3, 6), torch.stack([graph.in_degree for graph in graphs]))
    assert torch.equal(heads.out_degree.view(3, 6), torch.stack([graph.out_degree for graph in graphs]))


def test_stack_of_heads(counts) -> None:
    copies = [[random_graph(5 * b + h, "dense").restrict(torch.arange(5)) for h in range(2)] for b in range(3)]
    graph = TokenGraph.stack([TokenGraph.per_head(heads) for heads in copies])
    assert graph.leading == (3, 2) and graph.leading_axes == "bh"
    expected = torch.stack([torch.stack([head.to_dense() for head in heads]) for heads in copies])
    assert torch.equal(graph.to_dense(), expected)
    assert graph.edge_slices.shape == (7,) and int(graph.edge_slices[-1]) == graph.num_edges
    assert torch.equal(graph.T.to_dense(), expected.mT)


def test_stack_keeps_members() -> None:
    batch = random_graph(0, "batch")
    heads = TokenGraph.per_head([batch, batch.T, causal(batch.num_tokens) & batch])
    assert torch.equal(heads.target_ptr, batch.target_ptr) and heads.num_members == batch.num_members


def test_stack_of_nothing_to_read() -> None:
    empty = TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)
    assert TokenGraph.stack([empty] * 3).edge_slices.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda g, h: TokenGraph.batch([]), ArgumentError, "batch needs at least one graph, got none"),
        (lambda g, h: TokenGraph.per_head([]), ArgumentError, "per_head needs at least one graph, got none"),
        (lambda g, h: TokenGraph.batch([g, 1]), ArgumentTypeError, "batch needs token graphs, got int at 1"),
        (lambda g, h: TokenGraph.batch([g, g.to("meta")]), ArgumentError, "graph 0 is on cpu and graph 1 on meta"),
        (lambda g, h: TokenGraph.batch([g, h]), ArgumentError, r"without leading dimensions, got \[2\] in graph 1"),
        (lambda g, h: h.unbatch(), ArgumentError, r"unbatch needs a graph without leading dimensions, got \[2\]"),
        (lambda g, h: TokenGraph.per_head([h, h]), ArgumentError, r"per_head needs .* no leading .* got \[2\]"),
        (lambda g, h: TokenGraph.stack([TokenGraph.stack([g])]), ArgumentError, r"or one of heads, got \[1\] \('b'\)"),
        (lambda g, h: TokenGraph.stack([h, g]), ArgumentError, r"differ in leading dimensions: \(2,\) and \(\)"),
        (
            lambda g, h: TokenGraph.per_head([g, g, complete(99)]),
            ArgumentError,
            "per_head needs graphs of one size, but graph 0 and graph 2 differ in number of targets: 6 and 99",
        ),
        (
            lambda g, h: TokenGraph.per_head([g, complete(6, 7)]),
            ArgumentError,
            "differ in number of sources: 6 and 7",
        ),
        (
            lambda g, h: TokenGraph.per_head([g, blocks([0, 2, 6])]),
            ArgumentError,
            r"differ in members: None and \[0, 2, 6\]",
        ),
    ],
)
def test_bad_arguments(call, error: type, text: str) -> None:
    graph = random_graph(0).restrict(torch.arange(6))
    with pytest.raises(error, match=text):
        call(graph, TokenGraph.per_head([graph, graph]))


def test_a_leaking_batch_cannot_be_taken_apart() -> None:
    leak = TokenGraph.from_edge_index(torch.tensor([[0], [1]]), ptr=torch.tensor([0, 1, 2]), validate=False)
    with pytest.raises(ArgumentError, match="unbatch needs a block-diagonal graph"):
        leak.unbatch()
