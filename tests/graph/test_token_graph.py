"""TokenGraph: direction, order of edges, members, what goes wrong."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, window


def edges(*pairs: tuple[int, int]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t()


def test_target_reads_source() -> None:
    # One edge, 0 -> 2: token 2 reads token 0 and nobody else reads anything.
    graph = TokenGraph.from_edge_index(edges((0, 2)), 3)
    assert graph.to_dense().tolist() == [[False] * 3, [False] * 3, [True, False, False]]
    assert graph.rowptr.tolist() == [0, 0, 0, 1] and graph.col.tolist() == [0]
    assert graph.csc.colptr.tolist() == [0, 1, 1, 1] and graph.csc.row.tolist() == [2]
    assert graph.in_degree.tolist() == [0, 0, 1] and graph.out_degree.tolist() == [1, 0, 0]
    assert graph.edge_index.tolist() == [[0], [2]]


def test_agrees_with_pyg_message_passing() -> None:
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import SimpleConv

    graph = TokenGraph.from_edge_index(torch.randint(0, 9, (2, 30)), 9)
    x = torch.randn(9, 4)
    read = graph.to_torch_sparse().to_dense() @ x
    torch.testing.assert_close(read, SimpleConv()(x, graph.edge_index))


def test_sorted_views_hold_the_callers_edges(graph: TokenGraph) -> None:
    source, target = graph.edge_index
    csr, csc = graph.csr, graph.csc
    edge_id = torch.arange(graph.num_edges) if csr.edge_id is None else csr.edge_id.long()
    assert torch.equal(source[edge_id], csr.col.long()) and torch.equal(target[edge_id], graph.row.long())
    key = graph.row.long() * graph.num_sources + csr.col
    assert bool((key.diff() >= 0).all())
    assert bool((edge_id.diff()[key.diff() == 0] > 0).all()), "duplicates keep the caller's order"
    assert torch.equal(csr.rowptr.diff().long(), torch.bincount(target, minlength=graph.num_targets))

    column = torch.repeat_interleave(torch.arange(graph.num_sources), csc.colptr.diff())
    assert torch.equal(graph.row[csc.transpose_id.long()], csc.row)
    assert torch.equal(csr.col[csc.transpose_id.long()].long(), column)
    assert bool(((column * graph.num_targets + csc.row).diff() >= 0).all())


def test_edge_index_comes_back_in_the_callers_order() -> None:
    given = torch.randint(0, 6, (2, 40))
    assert torch.equal(TokenGraph.from_edge_index(given, 6).edge_index, given)
    assert torch.equal(TokenGraph.from_edge_index(given.int(), 6).edge_index, given)


def test_structure_holds_both_views(graph: TokenGraph) -> None:
    by_target, by_source = graph.structure
    source, target = graph.edge_index
    for view, owner, index in ((by_target, target, source), (by_source, source, target)):
        at = torch.arange(graph.num_edges) if view.edge_id is None else view.edge_id.long()
        assert torch.equal(owner[at], view.owner.long()) and torch.equal(index[at], view.index.long())


def test_sizes() -> None:
    pairs = edges((0, 4), (2, 1))
    assert TokenGraph.from_edge_index(pairs).num_tokens == 5
    bipartite = TokenGraph.from_edge_index(pairs, num_targets=5, num_sources=3)
    assert (bipartite.num_targets, bipartite.num_sources, bipartite.is_square) == (5, 3, False)
    assert TokenGraph.from_edge_index(pairs, num_targets=7).num_sources == 3
    with pytest.raises(ArgumentError, match="num_tokens needs a square graph, got 5 targets and 3 sources"):
        _ = bipartite.num_tokens


@pytest.mark.parametrize("validate", [True, False])
def test_members_say_how_many_tokens_there_are(validate: bool) -> None:
    ptr, longer = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 4])
    for arguments, sizes in (
        ({"target_ptr": ptr, "source_ptr": longer}, (3, 4)),
        ({"target_ptr": ptr, "source_ptr": longer, "num_targets": 3}, (3, 4)),
        ({"ptr": ptr, "num_sources": 3}, (3, 3)),
        ({"ptr": ptr}, (3, 3)),
    ):
        graph = TokenGraph.from_edge_index(edges((0, 0)), validate=validate, **arguments)
        assert (graph.num_targets, graph.num_sources) == sizes


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_without_edges(tokens: int) -> None:
    graph = TokenGraph.from_edge_index(edges(), tokens)
    assert graph.num_edges == 0 and graph.in_degree.tolist() == graph.out_degree.tolist() == [0] * tokens
    assert graph.to_dense().shape == (tokens, tokens) and graph.edge_index.shape == (2, 0)
    assert graph.reverse_edge.shape == (0,) and graph.is_symmetric


def test_members() -> None:
    graph = TokenGraph.from_edge_index(edges((0, 1), (3, 2), (4, 4)), ptr=torch.tensor([0, 2, 2, 4, 6]))
    assert graph.num_tokens == 6 and graph.num_members == 4
    assert graph.target_batch.tolist() == graph.source_batch.tolist() == [0, 0, 2, 2, 3, 3]
    assert graph.target_ptr is graph.source_ptr
    alone = TokenGraph.from_edge_index(edges((0, 1)))
    assert alone.num_members == 1 and alone.target_ptr is None and alone.target_batch.tolist() == [0, 0]


def test_from_csr_takes_arrays_as_they_are() -> None:
    rowptr, col = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 3, 1])
    graph = TokenGraph.from_csr(rowptr, col, num_sources=4)
    assert graph.rowptr is rowptr and graph.col is col and graph.edge_id is None
    assert graph.edge_index.tolist() == [[0, 3, 1], [0, 0, 2]]


GOOD = edges((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("edge_index", "arguments", "error", "text"),
    [
        ([[0], [1]], {}, ArgumentTypeError, r"edge_index must be an integer tensor of shape \[2, E\], got list"),
        (GOOD.float(), {}, ArgumentTypeError, "edge_index must be int64 .*got torch.float32"),
        (torch.zeros(5, 2).long(), {}, ArgumentError, r"got \[5, 2\]; did you mean edge_index.t\(\)\?"),
        (torch.zeros(3, 4).long(), {}, ArgumentError, r"shape \[2, E\] \(sources, targets\), got \[3, 4\]$"),
        (torch.zeros(4).long(), {}, ArgumentError, r"got \[4\]$"),
        (GOOD, {"num_tokens": 2}, ArgumentError, r"edge_index\[1\] \(target\) must lie in 0..1 .*got 2"),
        (edges((-1, 0)), {"num_tokens": 2}, ArgumentError, r"edge_index\[0\] \(source\) must lie in 0..1 .*got -1"),
        (edges((7, 0)), {"num_targets": 9, "num_sources": 7}, ArgumentError, r"for 7 source tokens, got 7"),
        (GOOD.to("meta"), {}, ArgumentError, "num_tokens.* must be given for an edge_index on the meta device"),
        (GOOD, {"num_tokens": 3, "num_targets": 3}, ArgumentError, "num_tokens .* or num_targets .* not both"),
        (GOOD, {"num_tokens": -1}, ArgumentError, "num_targets must not be negative, got -1"),
        (GOOD, {"num_tokens": 3.0}, ArgumentTypeError, "num_targets must be an int, got 3.0"),
        (GOOD, {"num_tokens": 3, "ptr": [0, 3]}, ArgumentTypeError, r"ptr must be an integer tensor .*got list"),
        (GOOD, {"num_tokens": 3, "ptr": torch.tensor([0.0, 3])}, ArgumentTypeError, "ptr must be .*got torch.float32"),
        (GOOD, {"num_tokens": 3, "ptr": torch.tensor([0, 4])}, ArgumentError, "ptr must rise from 0 .* 3, got 0..4"),
        (GOOD, {"num_tokens": 3, "ptr": torch.tensor([0, 2, 1, 3])}, ArgumentError, "ptr must rise from 0"),
        (
            GOOD,
            {"num_tokens": 3, "ptr": torch.tensor([0, 3], device="meta")},
            ArgumentError,
            "device of the edges, cpu",
        ),
        (
            GOOD,
            {"num_tokens": 3, "ptr": torch.tensor([0, 2, 3])},
            ArgumentError,
            r"edge 1 joins source 1 \(member 0\) and target 2 \(member 1\)",
        ),
        (GOOD, {"num_tokens": 3, "target_ptr": torch.tensor([0, 3])}, ArgumentError, "got no source_ptr"),
        (
            GOOD,
            {"num_tokens": 3, "ptr": torch.tensor([0, 3]), "source_ptr": torch.tensor([0, 3])},
            ArgumentError,
            "give ptr .* or target_ptr and source_ptr",
        ),
        (
            GOOD,
            {"num_tokens": 3, "target_ptr": torch.tensor([0, 3]), "source_ptr": torch.tensor([0, 3, 3])},
            ArgumentError,
            "one entry for each member and one more, got 2 and 3 entries",
        ),
    ],
)
def test_bad_edge_index(edge_index: object, arguments: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        TokenGraph.from_edge_index(edge_index, **arguments)


@pytest.mark.parametrize(
    ("rowptr", "col", "error", "text"),
    [
        (torch.tensor([]).long(), torch.tensor([]).long(), ArgumentError, r"rowptr must have shape .* got \[0\]"),
        (torch.tensor([0.0, 1]), torch.tensor([0]), ArgumentTypeError, "rowptr must be .* got torch.float32"),
        (torch.tensor([0, 1]), [0], ArgumentTypeError, "col must be a tensor of int64 or int32, got list"),
        (torch.tensor([0, 1]), torch.tensor([[0]]), ArgumentError, r"col must have one dimension, got shape \[1, 1\]"),
        (torch.tensor([0, 1]), torch.tensor([0]).int(), ArgumentTypeError, "rowptr and col must share dtype"),
        (torch.tensor([0, 2]), torch.tensor([0]), ArgumentError, "rowptr must rise from 0 to the number of edges, 1"),
        (torch.tensor([0, 1]), torch.tensor([1]), ArgumentError, "col must lie in 0..0, got 1..1"),
        (torch.tensor([0, 0, 2]), torch.tensor([1, 0]), ArgumentError, "col must ascend inside each row"),
    ],
)
def test_bad_csr(rowptr: Tensor, col: Tensor, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        TokenGraph.from_csr(rowptr, col)


def test_csr_may_not_leak_between_members() -> None:
    ptr = torch.tensor([0, 1, 2])
    with pytest.raises(ArgumentError, match="no edge may join two members"):
        TokenGraph.from_csr(torch.tensor([0, 1, 1]), torch.tensor([1]), target_ptr=ptr, source_ptr=ptr)


def test_validation_can_be_skipped() -> None:
    leak = TokenGraph.from_edge_index(edges((0, 1)), 2, ptr=torch.tensor([0, 1, 2]), validate=False)
    assert leak.edge_index.tolist() == [[0], [1]]


def test_reverse_edge(square: TokenGraph) -> None:
    both = torch.cat([square.edge_index, square.edge_index.flip(0)], dim=1)[:, torch.randperm(2 * square.num_edges)]
    graph = TokenGraph.from_edge_index(both, square.num_tokens)
    reverse = graph.reverse_edge
    assert torch.equal(both[:, reverse], both.flip(0))
    assert torch.equal(reverse[reverse], torch.arange(graph.num_edges)), "edges come in pairs, duplicates too"


def test_reverse_of_duplicates_pairs_in_order() -> None:
    graph = TokenGraph.from_edge_index(edges((1, 0), (0, 1), (0, 1), (1, 0), (2, 2), (2, 2)), 3)
    assert graph.reverse_edge.tolist() == [1, 0, 3, 2, 4, 5]


@pytest.mark.parametrize(
    ("pairs", "edge"),
    [([(0, 1), (1, 0), (1, 2)], "1 -> 2"), ([(0, 1), (0, 1), (1, 0)], "0 -> 1"), ([(2, 0)], "2 -> 0")],
)
def test_reverse_needs_symmetry(pairs: list[tuple[int, int]], edge: str) -> None:
    graph = TokenGraph.from_edge_index(edges(*pairs), 3)
    assert not graph.is_symmetric
    with pytest.raises(ArgumentError, match=f"edge {edge} has no reverse"):
        _ = graph.reverse_edge


def test_pytree_holds_only_tensors(graph: TokenGraph, counts) -> None:
    for _ in range(2):  # bare, then with everything built
        leaves, spec = _pytree.tree_flatten(graph)
        assert leaves and all(isinstance(leaf, Tensor) for leaf in leaves)
        assert _pytree.tree_structure(_pytree.tree_map(lambda leaf: leaf + 0, graph)) == spec
        again = _pytree.tree_unflatten([leaf.clone() for leaf in leaves], spec)
        assert torch.equal(again.edge_index, graph.edge_index) and torch.equal(counts(again), counts(graph))
        assert (again.num_targets, again.num_sources) == (graph.num_targets, graph.num_sources)
        assert torch.equal(again.target_batch, graph.target_batch)
        assert torch.equal(again.structure.by_source.index, graph.structure.by_source.index)
        assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec
        _ = graph.prepare()


def test_copies(graph: TokenGraph) -> None:
    for _ in range(2):  # bare, then with everything built
        file = io.BytesIO()
        torch.save(graph, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        for again in (loaded, pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), graph.to("cpu")):
            assert torch.equal(again.edge_index, graph.edge_index) and again.num_sources == graph.num_sources
            assert torch.equal(again.structure.by_source.index, graph.structure.by_source.index)


def test_to_device() -> None:
    graph = TokenGraph.from_edge_index(edges((0, 1), (1, 0)), ptr=torch.tensor([0, 2])).prepare()
    moved = graph.to("meta")
    assert moved.device.type == moved.csc.row.device.type == moved.target_ptr.device.type == "meta"
    assert moved.num_edges == 2 and window(5, 1).to("meta").device.type == "meta"


def test_repr(empty: TokenGraph) -> None:
    assert repr(empty) == "TokenGraph(tokens=0, edges=0, device='cpu')"
    batch = TokenGraph.from_edge_index(edges((0, 3)), num_targets=4, num_sources=1)
    assert repr(batch) == "TokenGraph(tokens=4 <- 1, edges=1, device='cpu')"
    assert "members=2" in repr(TokenGraph.batch([empty, empty]))
    assert "leading=(2,)" in repr(TokenGraph.per_head([empty, empty]))
