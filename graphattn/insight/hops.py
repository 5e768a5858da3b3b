"""How far attention reads: the weight at each distance on a reference graph.

One statistic with many names: :math:`\\sum_j A_{ij} f(d(i, j))`. With the distance in a sequence and
:math:`f = \\min(d, W)` it is WAAD, the windowed average attention distance of "Preplan-and-Anchor"; with f one for a
distance and 0 else, the hop profile; with f the identity, the span of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.insight.maps import Columns, MapPart, PairValues, lag

__all__ = [
    "AttentionDistance",
    "DistanceProfile",
    "HeadGroups",
    "HopProfile",
    "attention_distance",
    "distance_profile",
    "local_and_global",
    "waad",
]


class AttentionDistance:
    """Mean distance that each target reads at: :math:`\\sum_j A_{ij} \\min(d_{ij}, W)`, float64 ``[..., T]``.

    Args:
        distance: Of pairs: integers, or not; negative ones do not count. Default: places in the sequence.
        at_most: W; ``None``: no bound.
    """

    def __init__(self, distance: PairValues = lag, at_most: float | None = None) -> None:
        if at_most is not None and at_most <= 0:
            raise ArgumentError(f"at_most must be positive, got {at_most}")
        self._distance, self._at_most = distance, at_most
        self._total: Tensor | None = None

    def update(self, part: MapPart) -> None:
        """See :class:`~graphattn.insight.Reducer`."""
        found = part.at_pairs(self._distance).double().clamp(min=0, max=self._at_most)
        total = part.by_target(torch.where(part.allowed, part.weights, 0.0) * found)
        self._total = total if self._total is None else self._total + total

    def result(self) -> Tensor:
        """The mean distance of each target."""
        if self._total is None:
            raise ArgumentError("there must be a part of a map before there is a result")
        return self._total


def waad(window: int = 10) -> AttentionDistance:
    """Windowed average attention distance of each token of a sequence ("Preplan-and-Anchor"; the default window is that
    of a public re-implementation, unverified). The paper takes it over *local* heads: see :func:`local_and_global`."""
    return AttentionDistance(lag, window)


def attention_distance(
    weights: Tensor,
    allowed: Tensor | None = None,
    *,
    distance: PairValues = lag,
    at_most: float | None = None,
) -> Tensor:
    """:class:`AttentionDistance` of maps ``[..., T, S]`` that are there as a whole: float64 ``[..., T]``."""
    reducer = AttentionDistance(distance, at_most)
    reducer.update(Columns(weights, allowed))
    return reducer.result()


class HopProfile(NamedTuple):
    """What :class:`DistanceProfile` found, float64 ``[..., T, K + 1]``: for each target and distance 0, ..., K.

    Args:
        weight: What it gives to the sources there.
        even: What it would give if it read all that it may alike.
    """

    weight: Tensor
    even: Tensor

    def shares(self, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean over targets, of sum 1 over the distances that count: of the weight, and of even reading.

        Args:
            targets: bool ``[..., T]``: those that count; default: all that read anything at such a distance.

        Returns:
            Two float64 ``[..., K + 1]``.
        """
        keep = self.even.sum(-1) > 0
        keep = keep if targets is None else keep & targets
        found = []
        for x in (self.weight, self.even):
            total = x.sum(-1, keepdim=True)
            share = torch.where((total > 0) & keep.unsqueeze(-1), x / total.clamp(min=1e-300), 0.0)
            found.append(share.sum(-2) / keep.sum(-1, keepdim=True).clamp(min=1))
        return found[0], found[1]


class DistanceProfile:
    """The weight that each target gives to each distance on a reference graph (hop profile): a :class:`HopProfile`.

    Strength at k hops of "ViT visual analytics" (its metric details are a reconstruction, unverified), and the shells
    by which Guan et al. (arXiv 2505.02130) ask whether attention fits topology.

    Args:
        distance: Integers of pairs (:func:`graphattn.encoding.hop_distance`, say, or distances between occurrences in
            an ego tree); negative: the pair does not count.
        largest: K; larger distances are counted there.
    """

    def __init__(self, distance: PairValues, largest: int) -> None:
        if largest < 0:
            raise ArgumentError(f"largest must not be negative, got {largest}")
        self._distance, self._largest = distance, largest
        self._weight: Tensor | None = None
        self._even: Tensor | None = None

    def update(self, part: MapPart) -> None:
        """See :class:`~graphattn.insight.Reducer`."""
        found = part.at_pairs(self._distance).long()
        keep = part.allowed & (found >= 0)
        bins = found.clamp(0, self._largest)
        weight, even = (
            part.by_target_and_bin(torch.where(keep, x, 0.0), bins, self._largest + 1)
            for x in (part.weights, part.even)
        )
        self._weight = weight if self._weight is None else self._weight + weight
        self._even = even if self._even is None else self._even + even

    def result(self) -> HopProfile:
        """Weight by target and distance."""
        if self._weight is None or self._even is None:
            raise ArgumentError("there must be a part of a map before there is a result")
        return HopProfile(self._weight, self._even)


def distance_profile(
    weights: Tensor, allowed: Tensor | None = None, *, distance: PairValues, largest: int
) -> HopProfile:
    """:class:`DistanceProfile` of maps ``[..., T, S]`` that are there as a whole."""
    reducer = DistanceProfile(distance, largest)
    reducer.update(Columns(weights, allowed))
    return reducer.result()


class HeadGroups(NamedTuple):
    """Heads by how far they read, as pairs (layer, head).

    Args:
        near: The share of all heads of smallest span, the nearest first.
        far: The share of largest span, the furthest last.
    """

    near: list[tuple[int, int]]
    far: list[tuple[int, int]]


def local_and_global(spans: Sequence[Tensor], share: float = 0.3) -> HeadGroups:
    """Local and global heads of a model: the lowest and highest ``share`` of spans over all layers and heads
    ("Preplan-and-Anchor").

    Args:
        spans: ``[H]`` of each layer: the mean of :class:`AttentionDistance` over targets (and prompts).
        share: Of all heads, at least one, at most half.

    Raises:
        ArgumentError: If there is no head, or the share is not in (0, 0.5].
    """
    if not 0.0 < share <= 0.5:
        raise ArgumentError(f"share must be in (0, 0.5], got {share}")
    named = [(float(x), layer, head) for layer, row in enumerate(spans) for head, x in enumerate(row.tolist())]
    if len(named) < 2:
        raise ArgumentError(f"spans must hold at least two heads, got {len(named)}")
    ranked = [(layer, head) for _, layer, head in sorted(named)]
    count = max(1, int(share * len(ranked)))
    return HeadGroups(ranked[:count], ranked[-count:])
