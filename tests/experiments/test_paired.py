"""Figures over seeds: means, deviations, Student's intervals, and their text."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from experiments.paired import difference, half_width, interval, mean_and_deviation, spread


def test_an_interval_by_hand_and_by_scipy() -> None:
    low, high = interval([1.0, 2.0, 3.0])  # 4.303 * 1 / 3 ** 0.5
    assert low == pytest.approx(2 - 2.4841, abs=1e-3) and high == pytest.approx(2 + 2.4841, abs=1e-3)
    gaps = [0.3, -1.2, 0.7, 2.5]
    assert interval(gaps) == pytest.approx(tuple(stats.ttest_1samp(gaps, 0.0).confidence_interval(0.95)))
    assert interval(gaps, 0.8) == pytest.approx(tuple(stats.ttest_1samp(gaps, 0.0).confidence_interval(0.8)))


def test_one_seed_has_no_interval() -> None:
    assert interval([1.0]) is None and math.isnan(half_width([1.0]))
    assert mean_and_deviation([1.5]) == (1.5, 0.0)
    assert spread([1.5], 2) == "1.50" and difference([1.5], 2) == "+1.50"


def test_text() -> None:
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
    assert difference([1.0, 2.0, 3.0], 2) == "+2.00 [-0.48, +4.48]"


def test_a_run_that_diverged_is_told_not_lost() -> None:
    values = [1.0, math.nan, 3.0]
    assert all(math.isnan(x) for x in mean_and_deviation(values))
    assert interval(values) is None and spread(values, 1) == "nan ± nan" and difference(values, 1) == "+nan"
