"""Planted sinks and lines are found, and nothing is found where nothing was planted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.insight import Columns, SkewedLines, find_sinks, parent_offset, sink_scores, skewed_lines, tree_depth

GROUPS = 8
PARENT = torch.tensor([-1] + [x for f in range(GROUPS) for x in (0, *[1 + 9 * f] * 8)])  # complete, 73 vertices
N = len(PARENT)
CAUSAL = torch.ones(N, N, dtype=torch.bool).tril()


def maps(seed: int, *, sink: int | None = None, line: int | None = None, noise: float = 0.5, heads: int = 8) -> Tensor:
    """Softmax of random scores that prefer near tokens a little; averaged over heads."""
    generator = torch.Generator().manual_seed(seed)
    scores = noise * torch.randn(heads, N, N, generator=generator, dtype=torch.float64)
    place = torch.arange(N)
    scores = scores - 0.01 * (place[:, None] - place)
    if sink is not None:
        scores[..., sink] += 2.0
    if line is not None:
        scores[:, place[line:], place[line:] - line] += 2.0
    return scores.masked_fill(~CAUSAL, float("-inf")).softmax(-1).mean(0)


def lines_of(weights: Tensor, **options: object):
    reducer = SkewedLines()
    reducer.update(Columns(weights, CAUSAL))
    return skewed_lines(reducer.result(), **options)


@pytest.mark.parametrize("sink", [0, 9, 45, 63])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_sink_is_found_and_it_alone(sink: int, seed: int) -> None:
    found = find_sinks(maps(seed, sink=sink), CAUSAL, depth=tree_depth(PARENT))
    others = sink == 0  # the only vertex of depth 0 is its own median: no depth is given for it
    if others:
        found = find_sinks(maps(seed, sink=sink), CAUSAL)
    assert found.is_sink.nonzero().flatten().tolist() == [sink]
    assert float(found.score[sink]) > 10


@pytest.mark.parametrize("line", [3, 9, 18])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_line_is_found_and_it_alone(line: int, seed: int) -> None:
    found = lines_of(maps(seed, line=line))
    assert found.is_line.nonzero().flatten().tolist() == [line] and int(found.offset) == line
    assert float(found.ratio[line]) > 2
    assert not bool(lines_of(maps(seed, line=line), exclude=[line]).is_line.any())


def test_lines_of_maps_that_are_there_as_a_whole() -> None:
    weights = torch.stack([maps(0, line=9), maps(1)])
    mine, other = skewed_lines(weights, CAUSAL), lines_of(weights)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, equal_nan=True)
    assert mine.is_line.nonzero().tolist() == [[0, 9]] == skewed_lines(weights).is_line.nonzero().tolist()
    assert skewed_lines(weights.float(), min_pairs=N).offset.tolist() == [-1, -1]
    with pytest.raises(ArgumentError, match="means must be maps .* or OffsetMeans, got list"):
        skewed_lines([1.0])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="weights must be floating"):
        skewed_lines(torch.zeros(3))
    reducer = SkewedLines()
    reducer.update(Columns(weights))
    with pytest.raises(ArgumentError, match="allowed goes with maps"):
        skewed_lines(reducer.result(), CAUSAL)


@pytest.mark.parametrize("heads", [1, 8])
def test_unplanted_maps_have_neither(heads: int) -> None:
    every = torch.stack([maps(seed, heads=heads, noise=1.0) for seed in range(40)])
    assert not bool(find_sinks(every, CAUSAL, depth=tree_depth(PARENT)).is_sink.any())
    assert not bool(lines_of(every).is_line.any())
    even = CAUSAL.double() / CAUSAL.sum(1, keepdim=True)
    assert not bool(find_sinks(even, CAUSAL).is_sink.any()) and not bool(lines_of(even).is_line.any())


def test_the_shape_of_a_causal_map_gives_its_first_token_a_score_without_lift() -> None:
    even = CAUSAL.double() / CAUSAL.sum(1, keepdim=True)
    assert float(find_sinks(even, CAUSAL, lift=False).score[0]) > 3
    assert bool((find_sinks(even, CAUSAL).score.nan_to_num(0.0).abs() < 1e-6).all())


def test_one_bright_pair_and_few_readers_are_no_sink() -> None:
    weights = CAUSAL.double() / CAUSAL.sum(1, keepdim=True)
    weights[60, 40], weights[70:, 69] = 1.0, 1.0
    assert not bool(find_sinks(weights, CAUSAL).is_sink.any())


def test_sink_scores_by_hand() -> None:
    received = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 90.0])
    depth = torch.tensor([1, 1, 1, 2, 2, 2])
    # medians 2 and 20; gaps -1 0 1 -10 0 70, of median magnitude 1
    expected = torch.tensor([-1.0, 0.0, 1.0, -10.0, 0.0, 70.0], dtype=torch.float64)
    torch.testing.assert_close(sink_scores(received, depth), expected)
    assert bool((sink_scores(torch.ones(5)) == 0).all())
    assert sink_scores(torch.tensor([1.0, float("nan"), 2.0, 3.0]))[1].isnan()


def test_offset_means_by_hand_and_in_another_order() -> None:
    weights = torch.tensor([[1.0, 0, 0, 0], [0.4, 0.6, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]])
    reducer = SkewedLines()
    reducer.update(Columns(weights, torch.ones(4, 4, dtype=torch.bool).tril()))
    found = reducer.result()
    mean, error, count = found.mean, found.error, found.pairs
    torch.testing.assert_close(mean, torch.tensor([2.5 / 4, 1.0 / 3, 0.2, 0.1], dtype=torch.float64))
    assert count.tolist() == [4, 3, 2, 1]
    assert float(error[1]) == pytest.approx(torch.tensor([0.4, 0.3, 0.3]).double().std().item() / 3**0.5)
    reducer = SkewedLines(torch.tensor([0, -1, 1, 2]))  # token 1 is text
    reducer.update(Columns(weights))
    found = reducer.result()
    mean, count = found.mean, found.pairs
    torch.testing.assert_close(mean[:3], torch.tensor([1.9 / 3, 0.5 / 2, 0.1], dtype=torch.float64))
    assert count.tolist() == [3, 2, 1, 0]


def test_maps_pool_their_offsets() -> None:
    every = torch.stack([maps(seed) for seed in range(4)]).view(2, 2, N, N)
    reducer, wide = SkewedLines(), SkewedLines()
    reducer.update(Columns(every, CAUSAL))
    pooled = reducer.result().over((0, 1))
    # one map in which the four stand side by side has the same pairs
    beside = torch.block_diag(*every.reshape(4, N, N))
    wide.update(Columns(beside, torch.block_diag(*[CAUSAL] * 4)))
    torch.testing.assert_close(pooled.mean, wide.result().mean[:N])
    torch.testing.assert_close(pooled.error, wide.result().error[:N])


def test_parent_offset() -> None:
    assert parent_offset(PARENT) is None
    assert parent_offset(torch.tensor([-1, 0, 1, 2])) == 1
    assert parent_offset(torch.tensor([-1, -1])) is None
