"""What the paper claims of windows and links, and what the matrix says of it.

Claims of Guan et al. (arXiv 2505.02130) as a secondary summary and the numbers of the authors' notebooks give them; the
thresholds in points are ours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.llm_windows.network import WINDOWS
from experiments.paired import half_width

__all__ = ["FULL", "NAMES", "Claim", "Interval", "claims", "interval"]

NAMES = tuple(WINDOWS)
FULL = "uni-4"
"""Plain causal attention."""


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % interval (Student's t; NaN for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f}" + ("" if math.isnan(self.half) else f" ± {self.half:.2f}")

    def above(self, threshold: float) -> bool | None:
        """Whether the mean is above a threshold; ``None`` where the interval reaches past it."""
        if math.isnan(self.half) or abs(self.mean - threshold) <= self.half:
            return None
        return self.mean > threshold


class Claim(NamedTuple):
    """A claim of the paper, what was found, and whether it held; ``None``: the seeds do not tell."""

    text: str
    found: str
    held: bool | None

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "held", False: "did not hold", None: "undecided"}[self.held]


def interval(values: Tensor | Sequence[float]) -> Interval:
    """Of the mean of paired differences ``[seeds]``."""
    values = [float(x) for x in values]
    return Interval(statistics.fmean(values), half_width(values))


def claims(
    table: Tensor, reliance: Mapping[str, Sequence[float]], *, tolerance: float = 2.0, much: float = 10.0
) -> list[Claim]:
    """All claims.

    Args:
        table: float64 ``[seeds, 8, 8]`` test accuracy in % by training and evaluation window.
        reliance: Points lost on perturbed trees after plain training (uni-4), by level and seed.
        tolerance: Points that may be lost where a claim says that nothing is.
        much: Points that must be lost where a claim says that much is.
    """
    own = {name: table[:, at, at] for at, name in enumerate(NAMES)}

    def lost(train: str, *evaluate: str) -> Tensor:
        """Seed by seed: accuracy in the training window less the mean of that in others."""
        return own[train] - torch.stack([table[:, NAMES.index(train), NAMES.index(e)] for e in evaluate]).mean(0)

    def little(text: str, drop: Interval) -> Claim:
        above = drop.above(tolerance)
        return Claim(
            f"{text}: at most {tolerance:g} points", f"{drop} points lost", None if above is None else not above
        )

    found = []
    for direction in ("uni", "bidi"):
        names = [f"{direction}-{k}" for k in (1, 2, 3, 4)]
        inner = (own[names[1]] + own[names[2]] - own[names[0]] - own[names[3]]) / 2
        means = {name: float(own[name].mean()) for name in names}
        told = ", ".join(f"{name} {value:.1f}" for name, value in means.items())
        text = f"Intermediate windows train best ({direction}, k = 2, 3 against k = 1, 4, each evaluated in its own)"
        gap = interval(inner)
        found.append(Claim(text, f"{gap} points; best {max(means, key=means.__getitem__)} ({told})", gap.above(0.0)))
    for name in ("uni-2", "uni-3"):
        gap = interval(own[name] - lost(name, FULL) - own[FULL])
        text = f"Training with {name} and running without a mask (uni-4) beats training without a mask"
        found.append(Claim(text, f"{gap} points", gap.above(0.0)))
    for name in ("uni-1", "uni-2", "uni-3"):
        found.append(
            little(f"A model trained with {name} needs no mask when it runs (uni-4)", interval(lost(name, FULL)))
        )
    up, down = (lost("uni-1", FULL) + lost("uni-2", FULL)) / 2, lost(FULL, "uni-1", "uni-2")
    gap = interval(down - up)
    told = f"{float(up.mean()):.2f} points lost on the way up, {float(down.mean()):.2f} on the way down"
    text = "Small to large transfers better than large to small (uni, k = 1, 2 against 4)"
    found.append(Claim(text, f"{told}, difference {gap}", gap.above(0.0)))
    drop = interval(lost("uni-1", "bidi-1", "bidi-2", "bidi-3", "bidi-4"))
    text = f"A model trained with uni-1 loses much when it runs bidirectionally ({much:g} points; Roman-Empire)"
    found.append(Claim(text, f"{drop} points lost, mean of bidi-1 to bidi-4", drop.above(much)))
    drop = interval(lost("bidi-4", "bidi-1"))
    text = f"A model trained with bidi-4 loses much in the smallest window, bidi-1 ({much:g} points; Amazon-Ratings)"
    found.append(Claim(text, f"{drop} points lost", drop.above(much)))
    for level, what in (("I", "two neighbours exchange their children"), ("II", "children change places")):
        found.append(little(f"Links are hardly used after plain training; {what}", interval(reliance[level])))
    return found
