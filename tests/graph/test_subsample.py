"""Random sub-graphs: sizes, marginals, independence, distance profiles, always-kept tokens, seeds."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from graphattn import TokenGraph, patterns
from graphattn.encoding import hop_distance
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import subsample
from graphattn.graph.bits import BitGraph
from graphattn.graph.lists import ListGraph
from graphattn.graph.subsample.hops import gumbel_edges, hops_between
from graphattn.graph.subsample.plan import Plan


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform_p(count: Tensor, draws: int, keep: float) -> float:
    """The probability of counts of tokens at least as uneven, if each is kept with one probability; the counts of a
    subset of fixed size vary by (N - 1) / N less than binomial ones do, up to a factor."""
    n = count.numel()
    expected = draws * keep
    chi2 = float((count.double() - expected).square().sum() / (expected * (1 - keep)) * (n - 1) / n)
    return float(stats.chi2.sf(chi2, n - 1))


# --- uniform --------------------------------------------------------------------------------------------------


def test_a_uniform_subset_has_m_different_sources() -> None:
    index = subsample.uniform_sources(101, 0.25, batch=(3, 4), generator=seeded())
    assert index.shape == (3, 4, 26)  # ceil(25.25)
    assert all(len(set(row)) == 26 and 0 <= min(row) and max(row) < 101 for row in index.flatten(0, 1).tolist())
    assert (index.diff() > 0).all()
    assert subsample.uniform_sources(10, 0.25, generator=seeded(), minimum=8).shape == (8,)
    assert subsample.uniform_sources(5, 0.25, generator=seeded(), minimum=8).shape == (5,)


def test_every_token_is_kept_equally_often_and_pairs_are() -> None:
    """Marginals m / N, pairs m (m - 1) / (N (N - 1)): a subset, not a shift of one."""
    index = subsample.uniform_sources(12, 0.25, batch=(20_000,), generator=seeded())
    kept = torch.zeros(20_000, 12).scatter_(1, index, 1.0)
    assert uniform_p(kept.sum(0), 20_000, 0.25) > 1e-3
    pairs = (kept.T @ kept)[tuple(torch.triu_indices(12, 12, 1))]
    assert (pairs / 20_000 - 3 * 2 / (12 * 11)).abs().max() < 5 * math.sqrt(0.0455 / 20_000)
    after = (kept[1:] * kept[:-1]).sum(1).mean()  # entries are independent: m * m / N tokens in common
    assert abs(after - 9 / 12) < 0.03


def test_always_kept_tokens_count_among_the_m() -> None:
    index = subsample.uniform_sources(50, 0.2, batch=(400,), generator=seeded(), always=torch.tensor([0, 49]))
    kept = torch.zeros(400, 50).scatter_(1, index, 1.0)
    assert index.shape[1] == 10 and kept[:, 0].all() and kept[:, 49].all()
    assert uniform_p(kept[:, 1:49].sum(0), 400, 8 / 48) > 1e-3


def test_a_uniform_graph_is_one_list_for_all() -> None:
    graph = subsample.uniform_graph(40, 0.25, batch=3, generator=seeded())
    assert isinstance(graph, ListGraph) and graph.leading == (3,) and graph.is_disjoint
    mask = graph.to_dense()
    assert (mask == mask[:, :1]).all() and (mask.sum(-1) == 10).all()
    assert not torch.equal(mask[0], mask[1])
    whole = subsample.uniform_graph(40, 1.0, generator=seeded())
    assert torch.equal(whole.index.flatten(), torch.arange(40)) and whole.to_dense().all()


def test_a_causal_graph_has_no_empty_row_and_no_later_source() -> None:
    graph = subsample.uniform_graph(40, 0.1, batch=3, generator=seeded(), causal=True)
    mask = graph.to_dense()
    assert mask.diagonal(dim1=1, dim2=2).all() and not mask.triu(1).any()
    plain = subsample.uniform_graph(40, 0.1, batch=3, generator=seeded())  # the same subset
    eye = torch.eye(40, dtype=torch.bool)
    assert torch.equal(mask, plain.to_dense().tril() | eye)


def test_the_same_seed_draws_the_same_and_the_next_draw_another() -> None:
    random = seeded(7)
    first, second = (subsample.uniform_sources(1000, 0.1, generator=random) for _ in range(2))
    assert torch.equal(first, subsample.uniform_sources(1000, 0.1, generator=seeded(7)))
    assert not torch.equal(first, second)


def test_uniform_pairs() -> None:
    graph = subsample.uniform_pairs(60, 0.2, batch=(2, 3), axes="bh", generator=seeded(), keep_self=True)
    assert isinstance(graph, BitGraph) and graph.leading == (2, 3)
    mask = graph.to_dense()
    assert mask.diagonal(dim1=-2, dim2=-1).all()
    rest = mask[..., ~torch.eye(60, dtype=torch.bool)]
    assert abs(rest.float().mean() - 0.2) < 0.01 and not torch.equal(rest[0, 0], rest[0, 1])
    assert subsample.uniform_pairs(9, 0.0, generator=seeded()).num_edges == 0
    assert subsample.uniform_pairs(9, 1.0, generator=seeded()).num_edges == 81


def test_uniform_pairs_of_the_past_and_those_always_read() -> None:
    plain = subsample.uniform_pairs(40, 0.2, batch=(2,), axes="b", generator=seeded())
    first, below = torch.tensor([0, 3]), torch.ones(40, 40, dtype=torch.bool).tril()
    graph = subsample.uniform_pairs(40, 0.2, batch=(2,), axes="b", generator=seeded(), always=first, causal=True)
    wanted = plain.to_dense()
    wanted[..., first] = True
    assert torch.equal(graph.to_dense(), wanted & below) and graph.known_causal and not plain.known_causal


# --- ragged batches -------------------------------------------------------------------------------------------

SIZES = [5, 0, 40, 17]
PTR = torch.tensor([0, 5, 5, 45, 62])


def test_members_keep_their_share_and_no_fewer_than_the_minimum() -> None:
    kept = subsample.ragged_sources(PTR, 0.25, num_tokens=62, generator=seeded(), minimum=8)
    assert [int(part.sum()) for part in kept.split(SIZES)] == [5, 0, 10, 8]
    always = torch.zeros(62, dtype=torch.bool)
    always[PTR[2]] = True
    count = torch.zeros(62)
    random = seeded()
    for _ in range(600):
        kept = subsample.ragged_sources(PTR, 0.25, num_tokens=62, generator=random, minimum=2, always=always)
        count += kept
    assert count[5] == 600
    assert uniform_p(count[6:45], 600, 9 / 39) > 1e-3


def test_a_ragged_graph_reads_its_own_member() -> None:
    graph = subsample.ragged_uniform(PTR, 0.25, num_tokens=62, most=45, generator=seeded(), minimum=8, block=16)
    assert graph.num_members == 4
    mask, kept = graph.to_dense(), subsample.ragged_sources(PTR, 0.25, num_tokens=62, generator=seeded(), minimum=8)
    member = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))
    assert torch.equal(mask, (member[:, None] == member) & kept)  # all targets of a member, whatever their block


@pytest.mark.parametrize("known", [True, False])
def test_a_ragged_graph_reads_all_that_are_always_kept(known: bool) -> None:
    first = torch.arange(62) - PTR[:-1].repeat_interleave(torch.tensor(SIZES)) < 14
    graph = subsample.ragged_uniform(
        *(PTR, 0.1),
        num_tokens=62,
        most=40,
        generator=seeded(),
        minimum=2,
        always=first,
        most_always=14 if known else None,
        block=16,
    )
    member = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))
    assert torch.equal(graph.to_dense(), (member[:, None] == member) & first)


# --- local ----------------------------------------------------------------------------------------------------


def mean_distance(sigma: float, draws: int = 100) -> float:
    random = seeded()
    token = torch.arange(256)
    distance = (token[:, None] - token).abs()
    total = 0.0
    for _ in range(draws):
        total += float(distance[subsample.jittered_windows(256, 0.25, sigma, random).to_dense()].float().mean())
    return total / draws


def test_jitter_widens_the_windows_as_the_sheet_measured() -> None:
    """N = 256 in 4 blocks: mean attended distance 21.3, 22.0, 30.0, 59.9 and 85.5 for sigma 0, 8, 32, 128 and 10^6."""
    found = [mean_distance(sigma) for sigma in (0.0, 8.0, 32.0, 128.0, 1e6)]
    for mine, theirs, room in zip(found, (21.3, 22.0, 30.0, 59.9, 85.5), (0.1, 0.2, 0.5, 1.0, 1.5), strict=True):
        assert abs(mine - theirs) < room
    assert found == sorted(found)
    assert abs(mean_distance(math.inf) - 85.3) < 1.5


@pytest.mark.parametrize(("tokens", "keep", "window"), [(64, 0.25, 16), (50, 0.25, 13), (10, 1.0, 10), (7, 0.5, 4)])
def test_every_target_reads_exactly_w_sources(tokens: int, keep: float, window: int) -> None:
    graph = subsample.jittered_windows(tokens, keep, 5.0, seeded(), batch=2)
    mask = graph.to_dense()
    assert (mask.sum(-1) == window).all()
    if tokens % window == 0:
        assert graph.is_disjoint and (mask.sum(1) == window).all()  # windows partition the sources
    plain = subsample.jittered_windows(tokens, keep, 0.0, seeded()).to_dense()
    own = torch.arange(tokens) // window == (torch.arange(tokens) // window)[:, None]
    assert torch.equal(plain[: tokens // window * window], own[: tokens // window * window])


def test_windows_of_a_grid_are_its_quarters() -> None:
    graph = subsample.jittered_windows((6, 8), 0.25, 0.0, seeded())
    row, column = torch.arange(48) // 8, torch.arange(48) % 8
    quarter = row // 3 * 2 + column // 4
    assert torch.equal(graph.to_dense(), quarter[:, None] == quarter)
    graph = subsample.jittered_windows((8, 8), 0.25, 2.0, seeded(), batch=3)
    mask = graph.to_dense()
    assert (mask.sum(-1) == 16).all() and not torch.equal(mask[0], mask[1])
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    distance = (row[:, None] - row).square() + (column[:, None] - column).square()
    assert distance.expand(3, 64, 64)[mask].float().mean() < 0.8 * distance.float().mean()


def test_windows_in_the_order_of_a_graph() -> None:
    shuffled = torch.randperm(32, generator=seeded(1))
    graph = subsample.jittered_windows(shuffled.float(), 0.25, 0.0, seeded())
    assert torch.equal(graph.to_dense(), shuffled[:, None] // 8 == shuffled // 8)
    place = torch.stack([shuffled // 8, shuffled % 8], 1).float()  # 2 coordinates: a grid of 4 x 8 in another order
    graph = subsample.jittered_windows(place, 0.25, 0.0, seeded())
    quarter = (place[:, 0] // 2 * 2 + place[:, 1] // 4).long()
    assert torch.equal(graph.to_dense(), quarter[:, None] == quarter)
    both = torch.stack([shuffled, shuffled.flip(0)]).float()
    mask = subsample.jittered_windows(both.unsqueeze(-1), 0.25, 0.0, seeded(), batch=2).to_dense()
    assert torch.equal(mask, both[:, :, None] // 8 == both[:, None] // 8)


def test_gumbel_keeps_neighbours_and_prefers_the_near() -> None:
    path = patterns.window(40, 1)
    hops = hop_distance(path, 40)
    random = seeded()
    count = torch.zeros(41)
    for _ in range(50):
        mask = subsample.gumbel_hops(hops, 0.25, 3.0, random).to_dense()
        assert (mask.sum(-1) == 10).all() and mask[hops <= 1].all()
        count += torch.bincount(hops[mask], minlength=41)
    share = count / torch.bincount(hops.flatten(), minlength=41)
    assert share[2] > share[5] > share[9] > share[14]
    hub = TokenGraph.from_edge_index(torch.tensor([[*range(1, 30)], [0] * 29]), num_tokens=31)  # 30 is out of reach
    mask = subsample.gumbel_hops(hub, 0.1, 1.0, random).to_dense()
    assert mask[0, :30].all() and mask.sum().item() == 30 + 30  # all neighbours of 0; the others reach themselves only
    assert torch.equal(hops_between(path, 40), hops)


def test_no_tokens() -> None:
    for shape, axes in (((0, 0), ""), ((3, 0, 0), "b"), ((2, 3, 0, 0), "bh")):
        assert subsample.gumbel_hops(torch.zeros(shape), 0.5, 1.0, axes=axes).to_dense().shape == shape
    for graph in (subsample.uniform_graph(0, 0.5, batch=2), subsample.jittered_windows(0, 0.5, 1.0, batch=2)):
        assert graph.to_dense().shape == (2, 0, 0)


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match=r"keep must be a share in 0..1, got 1.5"):
        subsample.uniform_sources(5, 1.5)
    with pytest.raises(ArgumentError, match="sigma must not be negative, got -1"):
        subsample.jittered_windows(5, 0.5, -1.0)
    with pytest.raises(ArgumentTypeError, match="positions must be an int"):
        subsample.jittered_windows(torch.arange(5), 0.5, 1.0)
    with pytest.raises(ArgumentError, match="positions must be for 1 or 3 batch entries"):
        subsample.jittered_windows(torch.zeros(2, 5, 1), 0.5, 1.0, batch=3)
    with pytest.raises(ArgumentError, match="tau must be positive, got 0"):
        subsample.gumbel_hops(torch.zeros(3, 3), 0.5, 0.0)
    with pytest.raises(ArgumentTypeError, match=r"hops must be a tensor \[..., N, N\], got \[3\]"):
        subsample.gumbel_hops(torch.zeros(3), 0.5, 1.0)
    with pytest.raises(ArgumentError, match="keep must be a probability"):
        subsample.uniform_pairs(5, -0.1)


def test_in_edges_by_hops_and_their_probabilities() -> None:
    """Neighbours in any case, the nearest most often, nothing beyond reach; sums over 1 / probability are unbiased."""
    tokens, draws = 12, 4000
    order = torch.randperm(tokens * tokens, generator=seeded(3))  # the caller's order is not the graph's
    source, target = torch.arange(tokens).repeat(tokens)[order], torch.arange(tokens).repeat_interleave(tokens)[order]
    graph = TokenGraph.from_edge_index(torch.stack([source, target]), tokens)
    hops = (source - target).abs()
    hops[(source == 11) & (target == 0)] = -1
    plan = Plan("hops", 0.5, 2.0, 1, 0, None, None, hops=hops)
    keep, share = gumbel_edges(graph, plan, draws, seeded())
    distance = hops[graph.edge_id]
    assert keep[:, (distance >= 0) & (distance <= 1)].all() and not keep[:, distance < 0].any()
    counts = torch.zeros(draws, tokens, dtype=torch.int64).index_add_(1, graph.row.long(), keep.long())
    assert (counts == 6).all()  # half of 12, with the neighbours among them
    often = torch.stack([keep[:, distance == n].float().mean() for n in range(1, 10)])
    assert (often.diff() < 0).all()
    value = torch.rand(graph.num_edges, generator=seeded(1)).masked_fill(distance < 0, 0.0)
    estimate = torch.zeros(draws, tokens).index_add_(1, graph.row.long(), keep * value / share.clamp_min(1e-30))
    exact = torch.zeros(tokens).index_add_(0, graph.row.long(), value)
    z = (estimate.mean(0) - exact) / (estimate.std(0) / math.sqrt(draws))
    assert z.abs().max() < 4.5
    for wrong, text in ((hops[:5], r"hops must be \[144\], a number for each edge, got \[5\]"), (None, "needs hops")):
        with pytest.raises(ArgumentError, match=text):
            gumbel_edges(graph, plan._replace(hops=wrong), 1, None)
    with pytest.raises(ArgumentError, match="sigma must be positive with scheme='hops', got 0"):
        gumbel_edges(graph, plan._replace(sigma=0.0), 1, None)
    none = TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 3)
    kept, _ = gumbel_edges(none, plan._replace(hops=torch.zeros(0)), 2, None)
    assert kept.shape == (2, 0)


def test_one_rounding_for_numbers_and_tensors() -> None:
    sizes = torch.arange(300)
    for keep in (0.0, 0.07, 0.3, 0.55, 1.0):
        for minimum in (0, 1, 8):
            wanted = [subsample.count_kept(n, keep, minimum) for n in range(300)]
            assert subsample.counts_kept(sizes, keep, minimum).tolist() == wanted
    assert subsample.count_kept(100, 0.07) == 7 and subsample.count_kept(50, 0.3) == 15
