"""Blocks: tiles and bits say what the graph says, found from a list of edges or from a rule that is never listed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
    strided,
    window,
)
from graphattn.graph.order import align_members
from graphattn.graph.tiles import pack, unpack
from graphattn.graph.tiling import count_edges, make_blocks, tile_fill
from graphattn.testing import GRAPH_KINDS, random_graph
from graphattn_kernels.blocks import Blocks, BlockView

PATTERNS: dict[str, Callable[[], Pattern]] = {
    "complete": lambda: complete(100, 70),
    "no tokens": lambda: complete(0),
    "no sources": lambda: complete(40, 0),
    "causal": lambda: causal(130),
    "prefix": lambda: prefix(130, 40),
    "window": lambda: window(200, 20),
    "window, dilated": lambda: window(300, 5, 3),
    "window, dilated and causal": lambda: window(150, 4, 7, causal=True),
    "strided": lambda: strided(140, 33),
    "hubs": lambda: hubs(100, 40),
    "blocks": lambda: blocks([0, 40, 40, 170, 171]),
    "blocks, crossed": lambda: blocks([0, 40, 40, 100], [0, 1, 70, 71]),
    "grid": lambda: grid(17, 13, 2),
    "grid, 4": lambda: grid(40, 3, neighbours=4, self_loops=True),
    "grid, radius beyond": lambda: grid(9, 11, 20, self_loops=True),
    "torus": lambda: grid(12, 18, 3, torus=True),
    "torus, 4": lambda: grid(3, 50, neighbours=4, torus=True),
    "neighbourhood": lambda: neighbourhood(17, 13, 5),
    "neighbourhood, line": lambda: neighbourhood(2, 60, 7),
    "union": lambda: window(140, 17) | hubs(140, 3),
    "intersection": lambda: causal(171) & blocks([0, 40, 40, 170, 171]),
    "difference": lambda: complete(140) - causal(140),
    "difference of windows": lambda: window(200, 90) - window(200, 40),
    "transposed": lambda: (causal(90) - window(90, 3)).T,
}
SIZES = [(32, 32), (32, 64), (64, 32), (128, 64)]


def _places(stored: Tensor | None, count: int, block: int) -> Tensor:
    """``[blocks, block]``: the token at each place; ``count`` for nobody, who gets a row that must stay empty."""
    places = torch.arange(count) if stored is None else torch.where(stored < 0, count, stored.long())
    return torch.nn.functional.pad(places, (0, -places.shape[0] % block), value=count).view(-1, block)


def _dense(view: BlockView, owners: Tensor, others: Tensor, sizes: tuple[int, int], copies: int) -> Tensor:
    """Boolean ``[copies, owners, others]``, tile by tile."""
    dense = torch.zeros(copies, sizes[0] + 1, sizes[1] + 1, dtype=torch.int64)
    assert view.ptr.dtype == view.index.dtype == view.slot.dtype == view.mask.dtype == torch.int32
    assert view.num_rows == copies * owners.shape[0] and view.ptr[-1] == view.num_tiles
    partial = view.slot[view.slot >= 0]
    assert partial.sort().values.tolist() == list(range(view.mask.shape[0]))  # each mask is used once
    for row in range(view.num_rows):
        tiles = range(int(view.ptr[row]), int(view.ptr[row + 1]))
        assert view.index[tiles.start : tiles.stop].tolist() == sorted({int(view.index[n]) for n in tiles})
        for n in tiles:
            i, j = owners[row % owners.shape[0]][:, None], others[view.index[n].long()][None]
            bits = unpack(view.mask[view.slot[n].long()]) if view.slot[n] >= 0 else torch.ones(1, dtype=torch.bool)
            assert bits.any() and (view.slot[n] < 0 or not bits.all())
            dense[row // owners.shape[0]].index_put_((i, j), bits.long(), accumulate=True)
    assert not dense[:, -1].any() and not dense[:, :, -1].any()  # nobody reads or is read
    assert (dense <= 1).all()
    return dense[:, :-1, :-1].bool()


def assert_says(made: Blocks, mask: Tensor) -> None:
    """Both views hold exactly these edges, ``mask [copies, T, S]``."""
    copies, targets, sources = mask.shape
    t = _places(made.target, targets, made.block_targets)
    s = _places(made.source, sources, made.block_sources)
    assert torch.equal(_dense(made.by_target, t, s, (targets, sources), copies), mask)
    assert torch.equal(_dense(made.by_source, s, t, (sources, targets), copies), mask.mT)
    assert count_edges(made) == int(mask.sum())
    assert (made.num_targets, made.num_sources) == (targets, sources)


def rule(pattern: Pattern) -> Tensor:
    target, source = torch.arange(pattern.num_targets), torch.arange(pattern.num_sources)
    return pattern.contains(target[:, None], source)


def listed(graph: TokenGraph) -> TokenGraph:
    """The same edges without the rule."""
    return TokenGraph(
        graph.csr,
        num_targets=graph.num_targets,
        num_sources=graph.num_sources,
        target_ptr=graph.target_ptr,
        source_ptr=graph.source_ptr,
    )


@pytest.fixture
def never_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pattern: Pattern) -> None:
        raise AssertionError(f"{pattern} was listed edge by edge")

    kinds = [Pattern]
    for kind in kinds:
        kinds += kind.__subclasses__()
        monkeypatch.setattr(kind, "_enumerate", refuse)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("never_listed")
def test_a_pattern(name: str, size: tuple[int, int]) -> None:
    pattern = PATTERNS[name]()
    made = make_blocks(pattern, block_targets=size[0], block_sources=size[1])
    assert_says(made, rule(pattern)[None])
    natural = make_blocks(pattern, block_targets=size[0], block_sources=size[1], align=False)
    assert natural.target is None and natural.source is None
    assert_says(natural, rule(pattern)[None])


@pytest.mark.parametrize("name", PATTERNS)
def test_a_list_of_edges_has_the_tiles_of_its_rule(name: str) -> None:
    pattern = PATTERNS[name]()
    by_rule = make_blocks(pattern, block_targets=64, block_sources=32)
    by_edges = make_blocks(listed(pattern), block_targets=64, block_sources=32)
    assert_says(by_edges, rule(pattern)[None])
    for mine, other in ((by_rule.by_target, by_edges.by_target), (by_rule.by_source, by_edges.by_source)):
        assert torch.equal(mine.ptr, other.ptr) and torch.equal(mine.index, other.index)
        assert torch.equal(mine.slot < 0, other.slot < 0)
    assert _same(by_rule.target, by_edges.target) and _same(by_rule.source, by_edges.source)


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))


@pytest.mark.parametrize("kind", [kind for kind in GRAPH_KINDS if kind != "duplicates"])
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
def test_every_kind_of_graph(kind: str, bipartite: bool) -> None:
    graph = random_graph(3, kind, bipartite=bipartite)
    assert_says(make_blocks(graph, block_targets=32, block_sources=64), graph.to_dense()[None])


@pytest.mark.parametrize("axes", ["h", "b", "bh"])
def test_a_graph_for_each_head_and_batch_entry(axes: str) -> None:
    torch.manual_seed(1)
    masks = torch.rand(6, 40, 70) < torch.tensor([0.0, 0.01, 0.3, 1.0, 0.5, 0.02])[:, None, None]
    graphs = [TokenGraph.from_adj_t(mask) for mask in masks]
    if axes == "bh":
        graph = TokenGraph.stack([TokenGraph.per_head(graphs[:3]), TokenGraph.per_head(graphs[3:])])
    else:
        graph = TokenGraph.per_head(graphs) if axes == "h" else TokenGraph.stack(graphs)
    made = make_blocks(graph, block_targets=32, block_sources=64)
    assert made.leading == axes
    assert_says(made, masks)


def test_copies_of_a_ragged_batch_share_their_places() -> None:
    members = [TokenGraph.batch([random_graph(seed, "dense"), complete(40)]) for seed in (0, 0)]
    graph = TokenGraph.stack([members[0], members[1].without_self_loops()])
    assert_says(make_blocks(graph, block_targets=32, block_sources=32), graph.to_dense())


# --- places ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[5, 0, 33, 64, 1], [0, 0], [32, 32], []], ids=str)
def test_members_start_at_blocks_of_their_own(sizes: list[int]) -> None:
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    places, used = align_members(ptr, sum(sizes), 32)
    assert int(used) == sum(-(-size // 32) for size in sizes)
    member = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
    standing = places.view(-1, 32)
    assert standing[standing >= 0].tolist() == list(range(sum(sizes)))  # each once, in order
    for block in standing:
        assert member[block[block >= 0].long()].unique().numel() <= 1
        held = block >= 0
        assert torch.equal(held, held.sort(descending=True).values)  # nobody stands behind the last
    assert not (standing[int(used) :] >= 0).any()


def test_no_tile_of_a_batch_joins_two_members() -> None:
    graph = TokenGraph.batch([complete(5), causal(33), complete(64), complete(1)])
    made = make_blocks(graph, block_targets=32, block_sources=32)
    assert made.by_target.num_tiles == 1 + 3 + 4 + 1
    assert made.target is made.source and made.target.shape == (6 * 32,)
    assert make_blocks(graph, block_targets=32, block_sources=32, align=False).by_target.num_tiles > 9
    assert_says(made, graph.to_dense()[None])


@pytest.mark.parametrize("name", ["causal", "blocks", "union", "torus"])
@pytest.mark.parametrize("form", ["rule", "list"])
def test_any_order(name: str, form: str) -> None:
    graph: TokenGraph = PATTERNS[name]()
    expected = rule(graph.pattern)[None]
    if form == "list":
        graph = listed(graph)
    order = torch.randperm(graph.num_tokens)
    assert_says(make_blocks(graph, block_targets=32, block_sources=64, order=order), expected)
    gaps = torch.full((3 * order.shape[0],), -1)
    gaps[torch.randperm(gaps.shape[0])[: order.shape[0]]] = order
    made = make_blocks(graph, block_targets=32, block_sources=32, order=(gaps, order))
    assert torch.equal(made.target[: gaps.shape[0]].long(), gaps) and made.target.shape[0] % 32 == 0
    assert_says(made, expected)


def test_full_tiles_are_only_where_every_place_holds_a_token() -> None:
    view = make_blocks(complete(70), block_targets=32, block_sources=32).by_target
    assert (view.slot < 0).tolist() == [True, True, False] * 2 + [False] * 3
    order = torch.cat([torch.arange(40), torch.tensor([-1]), torch.arange(40, 70)])
    view = make_blocks(complete(70), block_targets=32, block_sources=32, order=order).by_target
    assert (view.slot < 0).tolist() == [True] + 8 * [False]


# --- what rules know of tiles ----------------------------------------------------------------------------------

EXACT = ["complete", "causal", "prefix", "window", "window, dilated", "hubs", "blocks", "grid, 4"]


@pytest.mark.parametrize("name", PATTERNS)
def test_what_a_rule_says_of_a_rectangle_is_true(name: str) -> None:
    """And it says all there is to know where the rule is simple, so that few pairs are asked about."""
    pattern = PATTERNS[name]()
    mask = rule(pattern)
    if not mask.numel():
        return
    torch.manual_seed(0)
    t, s = (torch.randint(size, (2, 400)).sort(dim=0).values for size in mask.shape)
    t[1, :50] = (t[0, :50] + 2).clamp(max=mask.shape[0] - 1)  # small ones, too
    s[1, 25:75] = s[0, 25:75]
    some, every = (x.expand(400) for x in pattern.tile(t[0], t[1], s[0], s[1]))
    for n in range(400):
        pairs = mask[t[0, n] : t[1, n] + 1, s[0, n] : s[1, n] + 1]
        assert some[n] or not pairs.any()
        assert not every[n] or pairs.all()
        if name in EXACT and name != "grid, 4":
            assert (some[n], every[n]) == (bool(pairs.any()), bool(pairs.all()))
    # One against many broadcasts.
    some, every = pattern.tile(t[0, :, None], t[1, :, None], s[0, :7], s[1, :7])
    assert torch.broadcast_shapes(some.shape, every.shape, (400, 7)) == (400, 7)


@pytest.mark.usefixtures("never_listed")
def test_a_rule_that_knows_nothing_of_tiles() -> None:
    class Parity(Pattern):
        def contains(self, target: Tensor, source: Tensor) -> Tensor:
            return (target + source) % 2 == 0

        def _enumerate(self) -> None:
            raise NotImplementedError

    pattern = Parity(70, 40)
    assert_says(make_blocks(pattern, block_targets=32, block_sources=32), rule(pattern)[None])


@pytest.mark.usefixtures("never_listed")
def test_a_long_sequence_asks_about_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    n, asked = 1 << 16, []
    pattern = window(n, 256) | hubs(n, 64)
    contains = type(pattern).contains

    def counted(self: Pattern, target: Tensor, source: Tensor) -> Tensor:
        answer = contains(self, target, source)
        asked.append(answer.numel())
        return answer

    monkeypatch.setattr(type(pattern), "contains", counted)
    made = make_blocks(pattern, block_targets=64, block_sources=64)
    assert sum(asked) < n * 64 * 3  # two rims of the window in each row of tiles; all pairs would be n * n
    assert max(asked) <= 1 << 23
    expected = n * 64 * 2 - 64 * 64 + sum(min(t + 256, n - 1) - max(t - 256, 64) + 1 for t in range(64, n))
    assert count_edges(made) == expected


# --- facts and errors ------------------------------------------------------------------------------------------


def test_pack() -> None:
    pairs = torch.rand(3, 5, 96) < 0.5
    words = pack(pairs)
    assert words.shape == (3, 5, 3) and words.dtype == torch.int32
    for i, j in itertools.product(range(5), range(96)):
        assert bool(words[1, i, j // 32].item() >> (j % 32) & 1) == bool(pairs[1, i, j])
    assert torch.equal(unpack(words), pairs)


def test_tile_fill() -> None:
    assert tile_fill(complete(128), 64) == 1.0
    assert tile_fill(window(64, 0), 64) == 1 / 64
    assert tile_fill(TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 5), 32) == 0.0
    # Two communities, shuffled and put in order again.
    graph = TokenGraph.batch([complete(64), complete(64)])
    order = torch.randperm(128)
    shuffled = TokenGraph.from_edge_index(order[graph.edge_index], 128)
    assert tile_fill(shuffled, 64) == 0.5
    assert tile_fill(shuffled, 64, order) == 1.0


def test_duplicates_are_an_error() -> None:
    with pytest.raises(ArgumentError, match="hold each edge once, but the graph has \\d+ edges that repeat another"):
        make_blocks(random_graph(0, "duplicates"))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"block_targets": 48}, ArgumentError, "block_targets must be one of \\(32, 64, 128\\), got 48"),
        ({"block_sources": 256}, ArgumentError, "block_sources must be one of"),
        ({"order": [1, 0]}, ArgumentTypeError, "order must be an integer tensor .* got int"),
        ({"order": torch.rand(6)}, ArgumentTypeError, "order must be an integer tensor .* got torch.float32 \\[6\\]"),
        ({"order": torch.arange(5)}, ArgumentError, "order must hold each of 6 tokens once"),
        ({"order": torch.tensor([0, 1, 2, 3, 4, 4])}, ArgumentError, "order must hold each of 6 tokens once"),
        ({"order": torch.arange(1, 7)}, ArgumentError, "order must hold each of 6 tokens once"),
        ({"order": torch.arange(7)}, ArgumentError, "order must hold each of 6 tokens once"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_blocks(window(6, 1), **options)


def test_one_order_for_two_sides() -> None:
    with pytest.raises(ArgumentError, match="one order for both sides needs a square graph"):
        make_blocks(complete(6, 7), order=torch.arange(6))
