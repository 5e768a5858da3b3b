"""Orders of tokens: permutations that gather edges into tiles, and the graphs of the moved tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, causal, complete, grid, window
from graphattn.graph.order import bfs, image_tiles, partition, rcm
from graphattn.graph.tiling import tile_fill
from graphattn.testing import GRAPH_KINDS, random_graph

ORDERS: dict[str, Callable[[TokenGraph], Tensor]] = {
    "rcm": rcm,
    "bfs": bfs,
    "parts": lambda graph: partition(graph, parts=3),
    "size": lambda graph: partition(graph, size=4),
    "parts of one": lambda graph: partition(graph, size=1),
    "one part": lambda graph: partition(graph, parts=1),
}


def shuffled(graph: TokenGraph) -> TokenGraph:
    order = torch.randperm(graph.num_tokens)
    return TokenGraph.from_edge_index(order[graph.edge_index], graph.num_tokens)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_orders_are_permutations_that_keep_members_together(order: str, kind: str) -> None:
    graph = random_graph(4, kind)
    found = ORDERS[order](graph)
    assert found.dtype == torch.int64 and found.sort().values.tolist() == list(range(graph.num_tokens))
    assert torch.equal(graph.target_batch[found], graph.target_batch)


@pytest.mark.parametrize("order", ORDERS)
def test_no_tokens(order: str, empty: TokenGraph) -> None:
    assert ORDERS[order](empty).tolist() == []


@pytest.mark.parametrize("kind", [*GRAPH_KINDS, "pieces"])
def test_breadth_first_order_written_out(kind: str) -> None:
    """A queue, component after component from its lowest token, neighbours by number; members one after another."""
    graph = random_graph(4, kind) if kind != "pieces" else pieces()
    near: list[set[int]] = [set() for _ in range(graph.num_tokens)]
    for source, target in graph.edge_index.T.tolist():
        near[source].add(target)
        near[target].add(source)
    order: list[int] = []
    for first in range(graph.num_tokens):
        queue = [] if first in order else [first]
        order += queue
        while queue:
            new = [token for token in sorted(near[queue.pop(0)]) if token not in order]
            order += new
            queue += new
    order.sort(key=lambda token: int(graph.target_batch[token]))  # stable
    assert bfs(graph).tolist() == order


def pieces() -> TokenGraph:
    """Components whose tokens interleave, one of them of one token alone, directed edges."""
    chain = torch.tensor([[0, 4, 9, 2, 8, 6], [4, 9, 6, 8, 3, 0]])
    return TokenGraph.from_edge_index(chain, 11)


def test_breadth_first_order_without_listing_edges() -> None:
    graph = TokenGraph.batch([complete(3), complete(4)])
    for dense in (complete(7), causal(7), graph):
        explicit = TokenGraph.from_edge_index(dense.edge_index, 7, ptr=dense.target_ptr)
        assert bfs(explicit).tolist() == bfs(dense).tolist() == list(range(7))
    assert complete(1 << 12)._csr is None and bfs(complete(1 << 12)).shape == (1 << 12,)
    with pytest.raises(ArgumentError, match="bfs needs a graph without leading dimensions"):
        bfs(TokenGraph.stack([window(5, 1)] * 2))


def test_rcm_makes_a_shuffled_path_a_band() -> None:
    path = shuffled(window(300, 1))
    source, target = path.reorder(rcm(path)).edge_index
    assert int((source - target).abs().max()) == 1
    # 898 edges: 10 tiles on the diagonal, and 9 on either side for the edges from one block to the next.
    assert tile_fill(path, 32, rcm(path)) == 898 / (28 * 32 * 32)
    assert tile_fill(path, 32) < 898 / (84 * 32 * 32)


def test_partition_finds_communities() -> None:
    """Four cliques on a ring, shuffled: a part each, but for the two edges of the ring."""
    graph = TokenGraph.batch([complete(32)] * 4)
    ring = torch.tensor([[31, 63, 95, 127], [32, 64, 96, 0]])
    edges = torch.cat([graph.edge_index, ring, ring.flip(0)], dim=1)
    mixed = shuffled(TokenGraph.from_edge_index(edges, 128))
    for order in (partition(mixed, size=32), partition(mixed, parts=4)):
        part = torch.empty(128, dtype=torch.int64)
        part[order] = torch.arange(128) // 32
        source, target = mixed.edge_index
        assert int((part[source] != part[target]).sum()) == 8
    assert tile_fill(mixed, 32) < 0.27 < 0.3 < tile_fill(mixed, 32, partition(mixed, size=32))


def test_partition_sizes() -> None:
    """Parts are cut where they were asked to be, whatever the graph: sizes follow from the number of tokens."""
    graph = TokenGraph.batch([window(10, 1), window(7, 1)])
    component = torch.tensor([0] * 10 + [1] * 7)
    assert component[partition(graph, size=10)].tolist() == component.tolist()


def test_image_tiles() -> None:
    assert image_tiles(4, 4, 2).view(4, 4).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    order = image_tiles(5, 7, 3)  # ragged tiles at the borders
    assert order.sort().values.tolist() == list(range(35))
    row, column = order // 7, order % 7
    tile = row // 3 * 3 + column // 3
    assert torch.equal(tile, tile.sort().values)
    assert image_tiles(0, 5).tolist() == []
    assert torch.equal(image_tiles(6, 3, 1), torch.arange(18))
    wide = grid(24, 256, 3)
    assert tile_fill(wide, 64, image_tiles(24, 256)) > 1.5 * tile_fill(wide, 64)


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_reorder_renumbers_tokens_and_keeps_the_edges_in_order(kind: str) -> None:
    graph = random_graph(2, kind)
    order = rcm(graph)
    moved = graph.reorder(order)
    assert torch.equal(order[moved.edge_index], graph.edge_index)
    assert moved.num_members == graph.num_members
    back = moved.reorder(order.argsort())
    assert torch.equal(back.edge_index, graph.edge_index)


@pytest.mark.parametrize(
    ("order", "error", "text"),
    [
        (torch.ones(6, dtype=torch.bool), ArgumentTypeError, "order must be an integer tensor \\[N\\], got torch.bool"),
        ([0], ArgumentTypeError, "order must be an integer tensor \\[N\\], got list"),
        (torch.arange(5), ArgumentError, "order must be a permutation of the 6 tokens, got shape \\[5\\]"),
        (torch.tensor([0, 1, 2, 3, 4, 4]), ArgumentError, "more than once"),
    ],
    ids=str,
)
def test_reorder_refuses_what_is_no_permutation(order: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        window(6, 1).reorder(order)


def test_bad_arguments() -> None:
    graph = window(6, 1)
    for options in ({}, {"parts": 2, "size": 2}):
        with pytest.raises(ArgumentError, match="give parts or size"):
            partition(graph, **options)
    with pytest.raises(ArgumentError, match="parts must be 1 or more, got 0"):
        partition(graph, parts=0)
    with pytest.raises(ArgumentError, match="tile 1 or more, got 4, 4 and 0"):
        image_tiles(4, 4, 0)
    for order in (rcm, lambda graph: partition(graph, parts=2)):
        with pytest.raises(ArgumentError, match="needs a square graph"):
            order(complete(3, 4))
        with pytest.raises(ArgumentError, match="needs a graph without leading dimensions, got \\[2\\]"):
            order(TokenGraph.stack([window(6, 1), window(6, 2)]))
