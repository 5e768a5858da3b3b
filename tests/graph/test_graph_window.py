"""Windows of prompts: the ball of a tree, checked by walking it; the rule, the list, the tiles and the masks agree."""

from __future__ import annotations

import copy
import io
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, causal, graph_window
from graphattn.graph.graph_window import GraphWindow
from graphattn.graph.reach import tree_adjacency, within_hops
from graphattn.graph.rules import Causal
from graphattn.graph.tiling import count_edges, make_blocks

# Ragged: the first neighbour has no child, the third has three, one tree is a root alone, and one has three levels.
TREES = [[-1, 0, 0, 2, 0, 4, 4, 4], [-1], [-1, 0, 1, 2, 2, 0], [-1, 0, 0, 0, 3]]
SIDES = ["none", "left", "right", "mixed"]


def walked(parent: list[int], node: list[int] | None = None) -> list[list[int]]:
    """Distances by breadth-first search, vertex by vertex; vertices of one node are one where nodes are given."""
    names = list(range(len(parent))) if node is None else node
    beside: dict[int, set[int]] = {name: set() for name in names}
    for vertex, above in enumerate(parent):
        if above >= 0:
            beside[names[vertex]].add(names[above])
            beside[names[above]].add(names[vertex])
    rows = []
    for start in names:
        far = {start: 0}
        queue = deque([start])
        while queue:
            at = queue.popleft()
            for other in beside[at] - set(far):
                far[other] = far[at] + 1
                queue.append(other)
        rows.append([far.get(name, 99) for name in names])
    return rows


def prompts(side: str = "none", tokens: int = 40) -> dict[str, Tensor]:
    """A batch with a prompt for each tree: text between the nodes, the centre once more near the end."""
    random = torch.Generator().manual_seed(3)
    size = max(map(len, TREES))
    parent = torch.full((len(TREES), size), -1)
    node_of_token = torch.full((len(TREES), tokens), -1)
    mask = torch.ones(len(TREES), tokens, dtype=torch.bool)
    for row, tree in enumerate(TREES):
        parent[row, : len(tree)] = torch.tensor(tree)
        place = torch.randperm(tokens - 16, generator=random)[: len(tree)].sort().values + 8
        node_of_token[row, place] = torch.arange(len(tree))
        if side in ("left", "mixed"):
            mask[row, : 2 * row] = False
        if side in ("right", "mixed"):
            mask[row, tokens - 7 + 2 * row :] = False
    return {"node_of_token": node_of_token, "parent": parent, "mask": mask}


def plain(batch: dict[str, Tensor], hops: int | None, direction: str, distances: list[Any] | None = None) -> Tensor:
    """The mask from the words of its definition, pair by pair."""
    vertex, mask = batch["node_of_token"].tolist(), batch["mask"].tolist()
    size = len(vertex[0])
    out = torch.zeros(len(vertex), size, size, dtype=torch.bool)
    for row, tree in enumerate(TREES):
        far = walked(tree) if distances is None else distances[row]
        for t in range(size):
            for s in range(size):
                reads = s <= t
                a, b = vertex[row][t], vertex[row][s]
                if a >= 0 and b >= 0:
                    near = hops is None or far[a][b] <= hops
                    reads = near and (direction == "bidi" or reads)
                out[row, t, s] = reads and mask[row][t] and mask[row][s]
    return out


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("direction", ["uni", "bidi"])
@pytest.mark.parametrize("hops", [0, 1, 2, 3, 6, None])
def test_it_is_the_ball_of_the_tree(hops: int | None, direction: Any, side: str) -> None:
    batch = prompts(side)
    graph = graph_window(batch["node_of_token"], batch["parent"], hops, direction, mask=batch["mask"])
    expected = plain(batch, hops, direction)
    assert torch.equal(graph.to_dense(), expected)
    assert isinstance(graph, GraphWindow) and graph.padding == side and graph.leading == (len(TREES),)
    assert graph.num_edges == int(expected.sum()) <= graph.max_edges

    listed = TokenGraph.stack([TokenGraph.from_adj_t(one) for one in expected])
    assert torch.equal(graph.csr.rowptr.long(), listed.csr.rowptr.long())
    assert torch.equal(graph.csr.col.long(), listed.csr.col.long())
    batches, tokens = expected.shape[0], expected.shape[1]
    b, t, s = torch.meshgrid(torch.arange(batches), torch.arange(tokens), torch.arange(tokens), indexing="ij")
    assert torch.equal(graph.mask_mod(b, torch.zeros_like(b), t, s), expected)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("direction", ["uni", "bidi"])
def test_tiles_and_block_mask_hold_the_same_edges(direction: Any, side: str) -> None:
    batch = prompts(side, tokens=150)
    graph = graph_window(batch["node_of_token"], batch["parent"], 1, direction, mask=batch["mask"])
    rule = make_blocks(graph, block_targets=32, block_sources=32)
    listed = make_blocks(
        TokenGraph.stack([TokenGraph.from_adj_t(one) for one in graph.to_dense()]), block_targets=32, block_sources=32
    )
    assert count_edges(rule) == graph.num_edges
    for mine, other in ((rule.by_target, listed.by_target), (rule.by_source, listed.by_source)):
        assert torch.equal(mine.ptr, other.ptr) and torch.equal(mine.index, other.index)
        slots = [view.mask[view.slot.clamp(min=0).long()] for view in (mine, other)]
        assert torch.equal(mine.slot < 0, other.slot < 0)
        assert torch.equal(slots[0][mine.slot >= 0], slots[1][other.slot >= 0])

    from torch.nn.attention.flex_attention import create_mask

    mask = graph.to_block_mask(32)
    assert mask.shape == (len(TREES), 1, 150, 150)
    assert torch.equal(create_mask(mask.mask_mod, len(TREES), 1, 150, 150, device="cpu")[:, 0], graph.to_dense())
    tiles = mask.to_dense()[:, 0].bool()
    wide = torch.nn.functional.pad(graph.to_dense(), (0, 10, 0, 10)).unflatten(1, (5, 32)).unflatten(3, (5, 32))
    assert torch.equal(tiles, wide.any(4).any(2))


def test_invariants_of_the_ball() -> None:
    for tree in TREES:
        parent, far = torch.tensor(tree), torch.tensor(walked(tree))
        adjacency = tree_adjacency(parent)
        balls = [within_hops(adjacency, hops) for hops in range(8)]
        assert torch.equal(balls[0], torch.eye(len(tree), dtype=torch.bool))
        for hops, ball in enumerate(balls):
            assert torch.equal(ball, far <= hops)
            assert hops == 0 or bool((balls[hops - 1] <= ball).all())
        assert balls[6].all()  # 2 L, with three levels
    batch = prompts()
    batch.pop("mask")
    dense = {
        (hops, direction): graph_window(batch["node_of_token"], batch["parent"], hops, direction).to_dense()
        for hops in range(7)
        for direction in ("uni", "bidi")
    }
    below = torch.ones(40, 40, dtype=torch.bool).tril()
    text = batch["node_of_token"] < 0
    for hops in range(7):
        assert torch.equal(dense[hops, "uni"], dense[hops, "bidi"] & below)
        for mask in (dense[hops, "uni"], dense[hops, "bidi"]):
            assert torch.equal(mask[text], below.expand(len(TREES), -1, -1)[text])  # of no window, the last centre too
    assert torch.equal(dense[6, "uni"], below.expand(len(TREES), -1, -1))


def test_densities_of_the_complete_tree() -> None:
    # Sheet: fan-out 8, 8, 73 tokens; k = 1 to 4.
    parent = torch.tensor([-1, *(x for f in range(8) for x in (0, *(8 * [1 + 9 * f])))])
    token = torch.arange(73)
    for direction, known in (("uni", (0.0272, 0.0865, 0.1706, 0.5068)), ("bidi", (0.0407, 0.1593, 0.3275, 1.0))):
        for hops, value in enumerate(known, 1):
            mask = graph_window(token, parent, hops, direction).to_dense()  # type: ignore[arg-type]
            assert float(mask.float().mean()) == pytest.approx(value, abs=5e-5)


def released(children: list[list[int]], hops: int, bidi: bool) -> Tensor:
    """The released construction, steps 1 to 5 of the sheet: sources are listed for each 1-hop node, lists of children
    only where they are not empty, and the two are matched by their place."""
    order, filled = [0], [kids for kids in children if kids]
    for first, kids in enumerate(children):
        order += [1 + first, *(100 + kid for kid in kids)]
    place = {name: at for at, name in enumerate(order)}
    size = len(order)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for first, kids in zip(range(len(children)), filled, strict=False):
        for kid in kids:
            mask[place[100 + kid], place[1 + first]] = True
    for first in range(len(children)):
        mask[place[1 + first], 0] = True
    both = (mask | mask.T | torch.eye(size, dtype=torch.bool)).float()
    reached = torch.linalg.matrix_power(both.double(), hops) > 0
    return reached if bidi else reached.tril()


def test_the_released_construction_and_its_mistake() -> None:
    def ours(children: list[list[int]], hops: int, bidi: bool) -> Tensor:
        parent = [-1]
        for kids in children:
            first = len(parent)
            parent += [0, *(first for _ in kids)]
        direction = "bidi" if bidi else "uni"
        return graph_window(torch.arange(len(parent)), torch.tensor(parent), hops, direction).to_dense()

    whole, ragged = [[0, 1], [2, 3], [4]], [[0, 1], [], [4]]
    for hops in (1, 2, 3, 4):
        for bidi in (False, True):
            assert torch.equal(ours(whole, hops, bidi), released(whole, hops, bidi))
    assert not torch.equal(
        ours(ragged, 1, False), released(ragged, 1, False)
    )  # 4 is given to the node without children


def test_distance_between_nodes_joins_what_stands_for_one() -> None:
    batch = prompts()
    nodes = torch.full_like(batch["parent"], -1)
    nodes[0, :8] = torch.tensor([5, 7, 2, 7, 9, 2, 5, 1])
    nodes[1, 0], nodes[2, :6], nodes[3, :5] = 3, torch.tensor([4, 1, 2, 4, 6, 8]), torch.tensor([0, 1, 2, 3, 1])
    distances = [walked(tree, nodes[row, : len(tree)].tolist()) for row, tree in enumerate(TREES)]
    for hops in range(4):
        graph = graph_window(
            batch["node_of_token"], batch["parent"], hops, "bidi", distance="node", node=nodes, mask=batch["mask"]
        )
        assert torch.equal(graph.to_dense(), plain(batch, hops, "bidi", distances))
    occurrence = graph_window(batch["node_of_token"], batch["parent"], 1, "bidi", mask=batch["mask"])
    assert (
        occurrence.num_edges
        < graph_window(
            batch["node_of_token"], batch["parent"], 1, "bidi", distance="node", node=nodes, mask=batch["mask"]
        ).num_edges
    )


def test_given_adjacency_and_several_tokens_of_a_vertex() -> None:
    vertex = torch.tensor([-1, 0, 0, -1, 1, 2, 2, -1])
    ring = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    mask = graph_window(vertex, torch.tensor([-1, -1, -1]), 1, "uni", adjacency=ring).to_dense()
    assert mask[2, 1] and mask[4, 1] and mask[4, 2] and mask[6, 5]  # one vertex, and neighbours
    assert not mask[5, 4] and not mask[5, 1] and mask[5, 3] and mask[7].all()
    assert not mask[1, 2]  # later, though it is the same vertex


def test_no_window_is_the_causal_pattern() -> None:
    batch = prompts()
    vertex, parent = batch["node_of_token"], batch["parent"]
    for hops, depth in ((None, None), (6, 3), (9, 3)):
        assert type(graph_window(vertex, parent, hops, depth=depth)) is Causal
    assert isinstance(graph_window(vertex, parent, 5, depth=3), GraphWindow)
    assert isinstance(graph_window(vertex, parent, None, "bidi"), GraphWindow)
    one = graph_window(vertex[0], parent[0], None, mask=torch.ones(40, dtype=torch.bool))
    assert isinstance(one, GraphWindow) and one.rows.shape[1] == 0 and one.leading == ()
    assert torch.equal(one.to_dense(), causal(40).to_dense())


def test_sizes_that_are_given_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphattn.graph import graph_window as module

    batch = prompts("left")
    expected = graph_window(batch["node_of_token"], batch["parent"], 2, mask=batch["mask"])

    def look(*_: Any) -> Any:
        raise AssertionError("waited for the device")

    monkeypatch.setattr(__import__("sys").modules["graphattn.graph.graph_window"], "_look", look)
    assert callable(module)
    graph = graph_window(batch["node_of_token"], batch["parent"], 2, mask=batch["mask"], node_tokens=10, padding="left")
    assert graph.rows.shape[1] == 10  # more than there are: rows of nobody
    assert torch.equal(graph.to_dense(), expected.to_dense()) and graph.num_edges == expected.num_edges


def test_copies_leave_tiles_behind() -> None:
    batch = prompts("right")
    graph = graph_window(batch["node_of_token"], batch["parent"], 1, mask=batch["mask"])
    assert isinstance(graph, GraphWindow) and graph.row_blocks is not None
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    for again in (torch.load(file, weights_only=True), copy.deepcopy(graph)):
        assert again._row_blocks is None and torch.equal(again.to_dense(), graph.to_dense())


def test_it_is_a_pytree_and_moves_and_combines() -> None:
    batch = prompts("right")
    graph = graph_window(batch["node_of_token"], batch["parent"], 1, "bidi", mask=batch["mask"])
    again = _pytree.tree_map(lambda x: x.clone(), graph)
    assert type(again) is GraphWindow and torch.equal(again.to_dense(), graph.to_dense())
    assert "node_tokens=8" in repr(graph) and "padding=right" in repr(graph)
    assert torch.equal(graph.T.csr.col, graph.csc.row)
    dense = graph.to_dense()
    wider = graph_window(batch["node_of_token"], batch["parent"], 2, "bidi", mask=batch["mask"])
    for combined, expected in (
        (graph & wider, dense),
        (graph | wider, wider.to_dense()),
        (graph - wider, dense & False),
    ):
        assert combined.leading == (len(TREES),) and torch.equal(combined.to_dense(), expected)
    assert torch.equal(wider.without_self_loops().to_dense().diagonal(dim1=1, dim2=2).any(), torch.tensor(False))


@pytest.mark.parametrize(
    ("change", "message", "kind"),
    [
        ({"hops": -1}, "hops must be an int of 0 or more, or None", ArgumentError),
        ({"hops": True}, "hops must be an int", ArgumentError),
        ({"direction": "both"}, "direction must be 'uni' or 'bidi', got 'both'", ArgumentError),
        ({"distance": "tree"}, "distance must be 'occurrence' or 'node'", ArgumentError),
        ({"distance": "node"}, "distance='node' needs node", ArgumentError),
        ({"parent": torch.zeros(2, 3)}, "parent must be an integer tensor, got torch.float32", ArgumentTypeError),
        ({"parent": torch.zeros(3, 8, dtype=torch.int64)}, r"parent must be \[4, 8\]", ArgumentError),
        ({"mask": torch.ones(4, 40)}, "mask must be a boolean tensor", ArgumentTypeError),
        ({"mask": torch.ones(4, 41, dtype=torch.bool)}, r"mask must be \[4, 40\]", ArgumentError),
        ({"node_of_token": torch.full((4, 40), 8)}, "node_of_token must be -1 to 7 for the 8 vertices", ArgumentError),
        ({"node_of_token": torch.zeros(1, 4, 40, dtype=torch.int64)}, "node_of_token must be", ArgumentError),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str, kind: type[Exception]) -> None:
    batch = prompts()
    arguments = {"node_of_token": batch["node_of_token"], "parent": batch["parent"], "hops": 1, **change}
    with pytest.raises(kind, match=message):
        graph_window(**arguments)
