"""Patterns: the rule, the list and the count say the same."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import (
    Pattern,
    TokenGraph,
    blocks,
    causal,
    complete,
    grid,
    hubs,
    neighbourhood,
    prefix,
    random_regular,
    strided,
    window,
)
from graphattn.graph.batch import side_by_side


def ring(a: int, b: int, size: int) -> int:
    return min((a - b) % size, (b - a) % size)


def cells(
    height: int, width: int, radius: int = 1, corners: bool = True, torus: bool = False, loops: bool = False
) -> Callable[[int, int], bool]:
    """Reading on a grid, from the words of its definition."""

    def reads(target: int, source: int) -> bool:
        (r1, c1), (r2, c2) = divmod(target, width), divmod(source, width)
        down = ring(r1, r2, height) if torus else abs(r1 - r2)
        right = ring(c1, c2, width) if torus else abs(c1 - c2)
        near = max(down, right) <= radius if corners else down + right <= radius
        return near and (loops or target != source)

    return reads


def square(height: int, width: int, size: int) -> Callable[[int, int], bool]:
    """Reading the cells of a square that is moved, at a border, as far as it takes to lie inside."""

    def along(target: int, source: int, count: int) -> bool:
        starts = range(max(count - size, 0) + 1)
        best = min(starts, key=lambda start: abs(start + size // 2 - target))
        return best <= source < best + size

    def reads(target: int, source: int) -> bool:
        (r1, c1), (r2, c2) = divmod(target, width), divmod(source, width)
        return along(r1, r2, height) and along(c1, c2, width)

    return reads


# name: (pattern, whether target t reads source s)
CASES: dict[str, tuple[Pattern, Callable[[int, int], bool]]] = {
    "complete": (complete(5), lambda t, s: True),
    "complete bipartite": (complete(3, 5), lambda t, s: True),
    "complete, no sources": (complete(3, 0), lambda t, s: True),
    "complete, empty": (complete(0), lambda t, s: True),
    "causal": (causal(6), lambda t, s: s <= t),
    "causal, empty": (causal(0), lambda t, s: True),
    "prefix": (prefix(7, 3), lambda t, s: s < 3 or s <= t),
    "prefix of nothing": (prefix(4, 0), lambda t, s: s <= t),
    "prefix of all": (prefix(4, 4), lambda t, s: True),
    "window": (window(9, 2), lambda t, s: abs(t - s) <= 2),
    "window of itself": (window(4, 0), lambda t, s: t == s),
    "window wider than the sequence": (window(4, 9), lambda t, s: True),
    "window, empty": (window(0, 2), lambda t, s: True),
    "window, dilated": (window(11, 2, 3), lambda t, s: abs(t - s) in (0, 3, 6)),
    "window, causal": (window(9, 2, causal=True), lambda t, s: 0 <= t - s <= 2),
    "window, dilated and causal": (window(9, 3, 2, causal=True), lambda t, s: t - s in (0, 2, 4, 6)),
    "strided": (strided(10, 3), lambda t, s: (t - s) % 3 == 0),
    "strided, causal": (strided(10, 4, causal=True), lambda t, s: (t - s) % 4 == 0 and s <= t),
    "strided beyond the sequence": (strided(3, 7), lambda t, s: t == s),
    "hubs": (hubs(6, 2), lambda t, s: t < 2 or s < 2),
    "no hubs": (hubs(3, 0), lambda t, s: False),
    "hubs only": (hubs(3, 3), lambda t, s: True),
    "blocks": (blocks([0, 2, 2, 5]), lambda t, s: (t < 2) == (s < 2)),
    "blocks, crossed": (blocks([0, 2, 3], [0, 1, 4]), lambda t, s: (t < 2) == (s < 1)),
    "no blocks": (blocks([0]), lambda t, s: True),
    "grid": (grid(3, 4), cells(3, 4)),
    "grid, radius": (grid(4, 5, 2), cells(4, 5, 2)),
    "grid, radius beyond": (grid(2, 3, 5), cells(2, 3, 5)),
    "grid, radius 0": (grid(2, 3, 0, self_loops=True), cells(2, 3, 0, loops=True)),
    "grid, 4": (grid(3, 4, neighbours=4), cells(3, 4, corners=False)),
    "grid, 4 with itself": (grid(3, 4, neighbours=4, self_loops=True), cells(3, 4, corners=False, loops=True)),
    "grid, 8": (grid(3, 4, neighbours=8), cells(3, 4)),
    "grid, line": (grid(1, 5), cells(1, 5)),
    "grid, empty": (grid(0, 5), cells(1, 5)),
    "neighbourhood": (neighbourhood(6, 7, 3), square(6, 7, 3)),
    "neighbourhood, five": (neighbourhood(5, 8, 5), square(5, 8, 5)),
    "neighbourhood of itself": (neighbourhood(3, 2, 1), lambda t, s: t == s),
    "neighbourhood beyond": (neighbourhood(2, 6, 5), square(2, 6, 5)),
    "neighbourhood, empty": (neighbourhood(0, 6, 5), square(1, 6, 5)),
    "torus": (grid(4, 5, torus=True), cells(4, 5, torus=True)),
    "torus, radius": (grid(5, 6, 2, torus=True), cells(5, 6, 2, torus=True)),
    "torus, wrapped twice": (grid(4, 3, 7, torus=True), cells(4, 3, 7, torus=True)),
    "torus, small": (grid(2, 3, torus=True, self_loops=True), cells(2, 3, torus=True, loops=True)),
    "torus, 4": (grid(3, 4, neighbours=4, torus=True), cells(3, 4, corners=False, torus=True)),
    "torus, 4, two rows": (grid(2, 1, neighbours=4, torus=True), cells(2, 1, corners=False, torus=True)),
    "torus, 4, one cell": (grid(1, 1, neighbours=4, torus=True), cells(1, 1, corners=False, torus=True)),
    "torus, empty": (grid(5, 0, torus=True), cells(1, 5)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Pattern, Tensor]:
    pattern, reads = CASES[request.param]
    rows = [[reads(t, s) for s in range(pattern.num_sources)] for t in range(pattern.num_targets)]
    mask = torch.tensor(rows, dtype=torch.bool).view(pattern.num_targets, pattern.num_sources)
    return pattern, mask


def rule(pattern: Pattern) -> Tensor:
    target, source = torch.arange(pattern.num_targets), torch.arange(pattern.num_sources)
    return pattern.contains(target[:, None], source)


def assert_is(pattern: TokenGraph, mask: Tensor) -> None:
    """A pattern that says, lists (target-major, sources ascending, each once) and counts these edges."""
    assert pattern.pattern is pattern
    assert torch.equal(rule(pattern.pattern), mask)
    assert pattern.num_edges == int(mask.sum()) <= pattern.pattern.max_edges
    assert pattern.edge_id is None
    assert pattern.edge_index.flip(0).t().tolist() == mask.nonzero().tolist()
    assert pattern.rowptr.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]


def test_rule_list_and_count_agree(case: tuple[Pattern, Tensor]) -> None:
    pattern, mask = case
    assert_is(pattern, mask)


def test_counting_does_not_list() -> None:
    n = 1 << 40
    for pattern in (complete(n), causal(n), prefix(n, 9), window(n, 3), strided(n, n // 2), hubs(n, 2), grid(n, n)):
        assert pattern.num_edges > n
        assert pattern._csr is None
        assert "device='cpu'" in repr(pattern) and pattern._csr is None


def test_transpose(case: tuple[Pattern, Tensor]) -> None:
    pattern, mask = case
    assert_is(pattern.T, mask.T)
    assert torch.equal(rule(pattern.T.T), mask)
    if pattern.is_square:
        assert pattern.is_symmetric == torch.equal(mask, mask.T)
        assert pattern.known_symmetric <= pattern.is_symmetric


def test_what_is_known_to_be_causal_is(case: tuple[Pattern, Tensor]) -> None:
    pattern, mask = case
    if pattern.known_causal:
        assert not mask.triu(1).any()


def test_known_causal() -> None:
    known = [causal(6), window(6, 2, causal=True), causal(6) & window(6, 2), causal(6) - window(6, 1)]
    known += [causal(6) | window(6, 2, causal=True), prefix(6, 0), prefix(6, 1)]
    assert all(graph.known_causal for graph in known)
    others = [complete(6), prefix(6, 2), window(6, 2), causal(6) | window(6, 2), window(6, 2) - causal(6), causal(6).T]
    assert not any(graph.known_causal for graph in others)
    two = [causal(6), window(6, 2, causal=True)]
    made = [TokenGraph.batch(two), TokenGraph.stack(two), TokenGraph.per_head(two), side_by_side(TokenGraph.stack(two))]
    assert all(graph.known_causal and not graph.to_dense().triu(1).any() for graph in made)
    assert all(copy.deepcopy(graph).known_causal for graph in made)
    assert all(_pytree.tree_map(torch.clone, graph).known_causal for graph in made)
    mixed = [causal(6), window(6, 2)]
    assert not TokenGraph.batch(mixed).known_causal and not TokenGraph.stack(mixed).known_causal


def test_survives_tree_map(case: tuple[Pattern, Tensor]) -> None:
    pattern, mask = case
    fresh = _pytree.tree_map(torch.clone, pattern)
    for _ in range(2):  # bare, then with its edges listed
        again = _pytree.tree_map(torch.clone, fresh)
        assert type(again) is type(pattern) and repr(again) == repr(pattern)
        assert_is(again, mask)
        spec = _pytree.tree_structure(fresh)
        assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec
        _ = fresh.prepare()


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (operator.or_, lambda a, b: a | b),
        (operator.and_, lambda a, b: a & b),
        (operator.sub, lambda a, b: a & ~b),
        (lambda a, b: (a | b).T, lambda a, b: (a | b).T),
        (lambda a, b: (a - b) | (b - a), lambda a, b: a ^ b),
        (lambda a, b: a.symmetrize() & b.T, lambda a, b: (a | a.T) & b.T),
        (lambda a, b: (a & b).with_self_loops(), lambda a, b: (a & b) | torch.eye(12).bool()),
        (lambda a, b: (a | b).without_self_loops(), lambda a, b: (a | b) & ~torch.eye(12).bool()),
        (lambda a, b: a.coalesce(), lambda a, b: a),
    ],
)
def test_combinations_stay_patterns(operation: Callable, expected: Callable) -> None:
    patterns = [
        window(12, 2),
        causal(12),
        hubs(12, 1),
        grid(3, 4),
        blocks([0, 3, 12]),
        strided(12, 5, causal=True),
        window(12, 1) | hubs(12, 2),
    ]
    for first in patterns:
        for second in patterns:
            result = operation(first, second)
            assert_is(result, expected(rule(first), rule(second)))
            assert _pytree.tree_map(torch.clone, result).num_edges == result.num_edges


def test_big_bird() -> None:
    graph = window(40, 2) | hubs(40, 1) | random_regular(40, 3, torch.Generator().manual_seed(0))
    assert graph.pattern is None and graph.num_tokens == 40
    assert torch.equal(graph.to_dense()[0], torch.ones(40).bool())


def test_members() -> None:
    ptr = torch.tensor([0, 3, 7])
    documents = causal(7) & blocks(ptr)
    assert documents.pattern is not None and documents.target_ptr.tolist() == [0, 3, 7]
    assert [member.num_edges for member in documents.unbatch()] == [6, 10]
    assert blocks(ptr).T.target_ptr.tolist() == [0, 3, 7] and blocks(ptr).num_members == 2
    assert blocks(ptr).target_batch.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert blocks(ptr).without_self_loops().num_members == 2
    assert (blocks(ptr) | hubs(7, 1)).target_ptr is None, "hubs join all members"


def test_blocks_read_nothing_when_told_the_sizes() -> None:
    pattern = blocks(torch.tensor([0, 2, 5], device="meta"), num_tokens=5, validate=False)
    assert pattern.num_tokens == 5 and pattern.device.type == "meta"


def test_intersection_lists_the_smaller() -> None:
    graph = causal(1 << 20) & window(1 << 20, 1)
    assert graph.num_edges == 2 * (1 << 20) - 1
    assert graph.first._csr is None, "the causal graph has 5e11 edges"


def test_device() -> None:
    for pattern in (
        complete(3, device="meta"),
        grid(3, 3, device="meta"),
        blocks([0, 1], device="meta", num_tokens=1, validate=False),
    ):
        assert pattern.device.type == "meta"
    both = window(4, 1).to("meta") | hubs(4, 1, device="meta")
    assert both.device.type == "meta" and both.T.device.type == "meta"
    with pytest.raises(ArgumentError, match=r"a \| b needs two graphs on one device, got cpu and meta"):
        _ = window(4, 1) | hubs(4, 1, device="meta")


def test_rule_traces() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    for pattern in (window(8, 2, 2), grid(2, 4, torus=True), blocks([0, 3, 8]), causal(8) - hubs(8, 2), prefix(8, 3).T):
        mask = flex.create_mask(lambda b, h, q, kv, p=pattern: p.contains(q, kv), None, None, 8, 8, device="cpu")
        assert torch.equal(mask[0, 0], rule(pattern))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: complete(-1), ArgumentError, "num_targets must be 0 or more, got -1"),
        (lambda: complete(2, -1), ArgumentError, "num_sources must be 0 or more, got -1"),
        (lambda: complete(2.0), ArgumentTypeError, "num_targets must be an int, got 2.0"),
        (lambda: causal(torch.tensor(3)), ArgumentTypeError, r"num_tokens must be an int, got tensor\(3\)"),
        (lambda: prefix(4, 5), ArgumentError, "size must be 0 to 4, got 5"),
        (lambda: window(4, -1), ArgumentError, "size must be 0 or more, got -1"),
        (lambda: window(4, 1, 0), ArgumentError, "dilation must be 1 or more, got 0"),
        (lambda: strided(4, 0), ArgumentError, "stride must be 1 or more, got 0"),
        (lambda: hubs(4, 5), ArgumentError, "count must be 0 to 4, got 5"),
        (lambda: grid(3, True), ArgumentTypeError, "width must be an int, got True"),
        (lambda: grid(3, 3, -1), ArgumentError, "radius must be 0 or more, got -1"),
        (lambda: grid(3, 3, 1, neighbours=4), ArgumentError, "give radius or neighbours, not both"),
        (lambda: grid(3, 3, neighbours=6), ArgumentError, "neighbours must be 4 or 8, got 6"),
        (
            lambda: neighbourhood(3, 3, 2),
            ArgumentError,
            "size must be odd, for the cell to be the middle of its square, got 2",
        ),
        (lambda: blocks([0, 3, 2]), ArgumentError, "ptr must rise from 0"),
        (lambda: blocks([1, 3]), ArgumentError, "ptr must rise from 0"),
        (lambda: blocks([0.0, 1.0]), ArgumentTypeError, "ptr must be an integer tensor"),
        (lambda: blocks([0, 3], [0, 1, 3]), ArgumentError, "got 2 and 3 entries"),
        (lambda: blocks([0, 3], num_tokens=4), ArgumentError, "ptr must rise from 0 to the number of tokens, 4"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_blocks_whose_counts_the_host_knows() -> None:
    """The number of edges says whether members are of one size, so that nothing need be looked up."""
    for sizes in ([3, 3, 3], [2, 4, 3], [5], [0, 2], []):
        ptr = torch.tensor([0, *sizes]).cumsum(0)
        edges = sum(size * size for size in sizes)
        told = blocks(ptr, num_tokens=sum(sizes), num_edges=edges, validate=False)
        assert told.sizes_known and told.num_edges == edges
        assert told.equal_members == blocks(ptr).equal_members == (len(set(sizes)) == 1)
        assert torch.equal(told.edge_index, blocks(ptr).edge_index)
    with pytest.raises(ArgumentError, match="num_edges must be what ptr says, 9, got 8"):
        blocks([0, 3], num_edges=8)
