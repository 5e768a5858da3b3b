"""Counted multiply-accumulates: the published table of Sparsifiner-S, and counting loops."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from graphattn.errors import ArgumentError
from graphattn.insight.macs import (
    AttentionMacs,
    attention_macs,
    keys_of,
    network_macs,
    pruned_tokens,
    sparsifiner_macs,
)

# DeiT-S on ImageNet, read off the table on the authors' project page: keys of a query, "MHSA" in millions.
PUBLISHED = {
    178: 396.8,
    158: 360.6,
    138: 324.6,
    119: 290.3,
    99: 254.2,
    79: 218.0,
    60: 183.6,
    40: 147.5,
    20: 111.4,
    10: 93.3,
    2: 78.9,
}
DEIT_S = {"layers": 12}


def deit(keys: int, **options: object) -> float:
    return sparsifiner_macs(197, 384, 6, keys=keys, **{**DEIT_S, **options}).total / 1e6  # type: ignore[arg-type]


def test_the_published_column() -> None:
    assert attention_macs(197, 384, **DEIT_S).total / 1e6 == pytest.approx(357.7, abs=0.05)
    for keys, published in PUBLISHED.items():
        assert deit(keys) == pytest.approx(published, abs=0.1)  # at the stated density of the basis, 0.698
    for keep, keys in ((0.9, 178), (0.5, 99), (0.25, 50), (0.1, 20), (0.01, 2)):
        assert keys_of(keep, 197) == keys
        assert sparsifiner_macs(197, 384, 6, keep=keep, **DEIT_S).total / 1e6 == deit(keys)


def test_slope_and_intercept() -> None:
    for mode in ("paper", "code"):
        slopes = {round(deit(b + 1, mode=mode) - deit(b, mode=mode), 9) for b in range(1, 196)}
        assert slopes == {1.806336}
    # Fitted to the table: 75.27, within 0.15 at that density.
    assert deit(50) - 50 * 1.806336 == pytest.approx(75.27, abs=0.15)
    parts = sparsifiner_macs(197, 384, 6, keys=50, **DEIT_S)
    assert parts.landmarks == 12 * 6 * 64 * 197 * 32 and parts.coefficients == 12 * 6 * 196 * 64 * 32
    assert parts.product == pytest.approx(12 * 6 * 196 * 8 * 197 * 0.698) and parts.projections == 0
    assert parts.scores == parts.values == 12 * 384 * (196 * 50 + 197)
    assert parts.predictor + parts.scores + parts.values == parts.total


def test_the_released_predictor_costs_more() -> None:
    code, paper = (sparsifiner_macs(197, 384, 6, keys=50, mode=mode, **DEIT_S) for mode in ("code", "paper"))
    assert code.projections / 1e6 == pytest.approx(58.1, abs=0.05)
    assert code.landmarks / 1e6 == pytest.approx(14.5, abs=0.05) and code.landmarks * 2 == paper.landmarks
    full = sparsifiner_macs(197, 384, 6, keys=50, mode="code", basis_density=1.0, **DEIT_S)
    assert full.predictor / 1e6 == pytest.approx(87.1 + 22.2, abs=0.2)
    assert code.predictor > paper.predictor and code.scores == paper.scores


def test_token_pruning() -> None:
    """DynamicViT at 0.7: 193.1 M published; at 0.5, 149.1 M, which this rounding of the kept tokens misses by 0.5."""
    tokens = pruned_tokens(197, 0.7, 12, (3, 6, 9))
    assert tokens == [197] * 4 + [139] * 3 + [98] * 3 + [69] * 2
    assert attention_macs(tokens, 384).total / 1e6 == pytest.approx(193.1, abs=0.15)
    assert attention_macs(pruned_tokens(197, 0.5, 12, (3, 6, 9)), 384).total / 1e6 == pytest.approx(149.1, abs=0.6)
    assert pruned_tokens(9, 1.0, 3, (0, 1)) == [9, 9, 9]
    assert pruned_tokens(11, 0.5, 3, (0, 1), prefix=1) == [11, 6, 4]


def test_rows_of_the_tables_that_the_stated_density_does_not_meet() -> None:
    """What the docstring says of them: LV-ViT-S needs a density of its own, token pruning no density meets."""
    lv, printed = {"layers": 16}, {0.5: 339.7, 0.25: 221.7, 0.1: 149.5}
    for keep, published in printed.items():
        counted = sparsifiner_macs(197, 384, 6, keep=keep, **lv).total / 1e6
        assert published - counted == pytest.approx(0.9, abs=0.06)
        fitted = sparsifiner_macs(197, 384, 6, keep=keep, basis_density=0.729, **lv).total / 1e6
        assert fitted == pytest.approx(published, abs=0.05)
    rows = {0.7: (113.3, 98.4, 112.1), 0.5: (86.6, 76.4, 86.9)}
    for share, (_, of_those_left, of_50) in rows.items():
        tokens = pruned_tokens(197, share, 12, (3, 6, 9))
        assert sparsifiner_macs(tokens, 384, 6, keep=0.25).total / 1e6 == pytest.approx(of_those_left, abs=0.05)
        assert sparsifiner_macs(tokens, 384, 6, keys=50).total / 1e6 == pytest.approx(of_50, abs=0.06)

    def misses(density: float) -> float:
        found = {
            share: sparsifiner_macs(pruned_tokens(197, share, 12, (3, 6, 9)), 384, 6, keys=50, basis_density=density)
            for share in rows
        }
        return max(abs(found[share].total / 1e6 - row[0]) for share, row in rows.items())

    densities = [n / 1000 for n in range(1001)]
    nearest = min(densities, key=misses)
    assert nearest == pytest.approx(0.738, abs=0.002) and misses(nearest) == pytest.approx(0.72, abs=0.01)


def test_shares_are_rounded_up_but_not_for_a_rounding_error() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point."""
    for keep in (0.07, 0.1, 0.3, 0.55, 0.7):
        exact = [math.ceil(Fraction(str(keep)) * n) for n in range(1, 300)]
        assert [keys_of(keep, n) for n in range(1, 300)] == exact


def test_against_counting() -> None:
    """A head, a row, a key at a time."""
    n, width, heads, layers, keys, rank = 7, 6, 2, 2, 3, 4
    count = 0
    for _ in range(layers):
        for _ in range(heads):
            for row in range(n):
                count += (n if row == 0 else keys) * (width // heads)
    found = attention_macs(n, width, layers=layers, keys=keys, full_rows=1)
    assert found == AttentionMacs(count, count)
    blocks = sparsifiner_macs(n, width, heads, keys=keys, rank=rank, basis_density=1.0, block=4)
    assert blocks.product == heads * math.ceil((n - 1) / 4) * rank * n
    few = sparsifiner_macs(n, width, heads, keys=keys, rank=rank, coefficients=8, basis_density=1.0)
    assert few.product == heads * (n - 1) * rank * n  # no more entries than the rank
    assert found + AttentionMacs(1, 2) == AttentionMacs(count + 1, count + 2)
    dense = attention_macs(197, 384, **DEIT_S)
    assert network_macs(dense, 197, 384, **DEIT_S) / 1e6 == pytest.approx(357.7 + 1394 + 2789, abs=1.5)
    assert attention_macs([5, 3], 4) == AttentionMacs(4.0 * 34, 4.0 * 34)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="give either keep or keys"):
        sparsifiner_macs(5, 4, 2)
    with pytest.raises(ArgumentError, match="mode must be 'paper' or 'code', got 'book'"):
        sparsifiner_macs(5, 4, 2, keys=2, mode="book")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"keep must be in \(0, 1\], got 0"):
        keys_of(0, 5)
