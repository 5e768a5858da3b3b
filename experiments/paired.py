"""Figures over seeds: mean and deviation, and what a paired difference tells, as numbers and as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["difference", "half_width", "interval", "mean_and_deviation", "spread"]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation (0 for one value; NaN where a run diverged)."""
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return mean, math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else 0.0


def half_width(differences: Sequence[float], level: float = 0.95) -> float:
    """Half of Student's interval of the mean of paired differences; NaN for fewer than two, or where a run diverged."""
    count = len(differences)
    if count < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, count - 1)) * mean_and_deviation(differences)[1] / math.sqrt(count)


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of paired differences; ``None`` for fewer than two."""
    half = half_width(differences, level)
    if math.isnan(half):
        return None
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def spread(values: Sequence[float], digits: int) -> str:
    """``mean ± deviation``; the mean alone for one value."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def difference(gaps: Sequence[float], digits: int) -> str:
    """``mean [low, high]`` of paired differences, with their signs; the mean alone for fewer than two."""
    text, bounds = f"{statistics.fmean(gaps):+.{digits}f}", interval(gaps)
    return text if bounds is None else text + f" [{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]"
