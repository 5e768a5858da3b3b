"""Attention sinks and skewed lines: bright columns and bright off-diagonals that no topology asks for.

Definitions after Guan et al., "Attention Mechanisms Perspective: Exploring LLM Processing of Graph-Structured Data"
(arXiv 2505.02130, ICML 2025), who describe both artefacts in pictures; thresholds and the conditions against chance are
ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.insight.maps import Columns, MapPart
from graphattn.insight.received import Received, ReceivedAttention

__all__ = [
    "Lines",
    "OffsetMeans",
    "Sinks",
    "SkewedLines",
    "find_sinks",
    "parent_offset",
    "sink_scores",
    "sinks_of",
    "skewed_lines",
]


class Sinks(NamedTuple):
    """Tokens that receive more than others of their kind.

    Args:
        score: float64 ``[..., N]``, in deviations (see :func:`sink_scores`).
        is_sink: bool ``[..., N]``.
    """

    score: Tensor
    is_sink: Tensor


def sink_scores(received: Tensor, depth: Tensor | None = None) -> Tensor:
    """How far a token's received attention lies above the median of its depth, in median absolute deviations.

    .. math:: z_j = \\frac{r_j - m_{d(j)}}{\\operatorname{median}_i |r_i - m_{d(i)}|}, \\qquad
        m_d = \\operatorname{median}_{i : d(i) = d} r_i

    The deviation is over all tokens, since a depth may have one token only, and at least a millionth of the mean.

    Args:
        received: ``[..., N]``; tokens of NaN do not count.
        depth: Integers ``[..., N]``, the kind of each token (its depth in the tree); default: all of one kind.

    Returns:
        float64 ``[..., N]``, NaN where ``received`` is.
    """
    received = received.double()
    depth = torch.zeros(received.shape[-1:], device=received.device) if depth is None else depth
    depth = depth.expand(received.shape)
    middle = torch.full_like(received, float("nan"))
    for kind in depth.unique():
        own = torch.where(depth == kind, received, float("nan"))
        middle = torch.where(depth == kind, _median(own), middle)
    gap = received - middle
    scale = torch.maximum(_median(gap.abs()), 1e-6 * received.nanmean(-1, keepdim=True).abs())
    return gap / scale.clamp(min=1e-300)


def _median(x: Tensor) -> Tensor:
    """Of what is not NaN; between both middle ones where their number is even."""
    return x.nanquantile(0.5, dim=-1, keepdim=True)


def find_sinks(
    weights: Tensor,
    allowed: Tensor | None = None,
    *,
    depth: Tensor | None = None,
    threshold: float = 3.0,
    factor: float = 2.0,
    errors: float = 4.0,
    min_readers: int = 8,
    lift: bool = True,
) -> Sinks:
    """Attention sinks of maps: columns that are bright for all that can see them.

    A sink has a score above ``threshold``, receives at least ``factor`` times the median of all and lies ``errors``
    standard errors above it, over enough readers. All but the first are ours: three deviations alone find one of fifty
    tokens by pure chance, and one bright pair is no column.

    Args:
        weights: ``[..., N, N]`` maps of node tokens, averaged over heads, say.
        allowed: See :func:`~graphattn.insight.received_attention`.
        depth: See :func:`sink_scores`.
        threshold: Least score.
        factor: Least multiple of the median.
        errors: Least distance from it in standard errors of the token's own mean.
        min_readers: Tokens with fewer readers are no sinks.
        lift: See :class:`~graphattn.insight.ReceivedAttention`; without it the first tokens of a causal map have high
            scores by its shape.
    """
    reducer = ReceivedAttention(lift=lift)
    reducer.update(Columns(weights, allowed))
    return sinks_of(reducer.result(), depth, threshold=threshold, factor=factor, errors=errors, min_readers=min_readers)


def sinks_of(
    received: Received,
    depth: Tensor | None = None,
    *,
    threshold: float = 3.0,
    factor: float = 2.0,
    errors: float = 4.0,
    min_readers: int = 8,
) -> Sinks:
    """:func:`find_sinks` where the map is gone: from what :class:`~graphattn.insight.ReceivedAttention` found."""
    attention = received.attention.masked_fill(received.readers < min_readers, float("nan"))
    score, middle = sink_scores(attention, depth), _median(attention)
    bright = (attention >= factor * middle) & (attention - middle > errors * received.error)
    return Sinks(score, (score > threshold) & bright)


class OffsetMeans(NamedTuple):
    """Off-diagonals of maps: sums for each offset 0, 1, ..., N - 1, float64 ``[..., N]``.

    Args:
        total: Of the weights.
        squares: Of their squares.
        pairs: How many there are.
    """

    total: Tensor
    squares: Tensor
    pairs: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean weight of pairs with this offset; 0 where there is none."""
        return self.total / self.pairs.clamp(min=1)

    @property
    def error(self) -> Tensor:
        """The standard error of the mean; 0 for fewer than two pairs."""
        spread = (self.squares / self.pairs.clamp(min=1) - self.mean.square()).clamp(min=0)
        return (spread / (self.pairs - 1).clamp(min=1)).sqrt()

    def over(self, dim: int | tuple[int, ...]) -> OffsetMeans:
        """Of all maps along leading dimensions together (prompts, heads)."""
        return OffsetMeans(*(x.sum(dim) for x in self))


class Lines(NamedTuple):
    """Skewed lines of maps, for each offset: ``[..., N]``.

    Args:
        ratio: float64: the mean of the offset over the mean of both its neighbours'; NaN where it has no score.
        is_line: bool.
        offset: int64 ``[...]``: the offset of the largest ratio; -1 where there is none.
    """

    ratio: Tensor
    is_line: Tensor
    offset: Tensor


class SkewedLines:
    """Mean weight along each off-diagonal, from part after part of a map.

    Args:
        order: Integers ``[..., N]`` that broadcast to the maps: the place of each token among those that count (node
            tokens, say), negative for the others. Default: the order of tokens.
    """

    def __init__(self, order: Tensor | None = None) -> None:
        self._order = order
        self._sums: list[Tensor] | None = None

    def update(self, part: MapPart) -> None:
        """See :class:`~graphattn.insight.Reducer`."""
        order = self._order
        if order is None:
            order = torch.arange(part.num_sources, device=part.weights.device)
        target, source = part.at_targets(order), part.at_sources(order)
        offset = target - source
        keep = part.allowed & (target >= 0) & (source >= 0) & (offset >= 0)
        weights = torch.where(keep, part.weights, 0.0)
        offset = offset.clamp(0, part.num_sources - 1)
        found = [part.by_bin(x, offset, part.num_sources) for x in (weights, weights.square(), keep)]
        old = self._sums
        self._sums = found if old is None else [a + b for a, b in zip(old, found, strict=True)]

    def result(self) -> OffsetMeans:
        """Sums, means and errors of each offset."""
        if self._sums is None:
            raise ArgumentError("there must be a part of a map before there is a result")
        return OffsetMeans(*self._sums)


def skewed_lines(
    means: OffsetMeans | Tensor,
    allowed: Tensor | None = None,
    *,
    threshold: float = 1.5,
    errors: float = 4.0,
    min_pairs: int = 8,
    exclude: Iterable[int] = (),
) -> Lines:
    """Bright lines parallel to the diagonal.

    The score of an offset of at least 2 is its mean over that of its neighbours, offset - 1 and offset + 1; a line has
    a score above ``threshold`` and lies ``errors`` standard errors above them (the second is ours, against chance).

    Args:
        means: ``[..., N, N]`` maps of node tokens, as :func:`find_sinks` takes them; or, where maps are gone or only
            some tokens count, what :class:`SkewedLines` found.
        allowed: See :func:`~graphattn.insight.received_attention`; of maps only.
        threshold: Least ratio.
        errors: Least distance in standard errors.
        min_pairs: Offsets with fewer pairs have no score.
        exclude: Offsets that topology explains (:func:`parent_offset`).

    Raises:
        ArgumentError: If ``means`` is neither, or ``allowed`` is given without maps.
    """
    if isinstance(means, Tensor):
        reducer = SkewedLines()
        reducer.update(Columns(means, allowed))
        means = reducer.result()
    elif not isinstance(means, OffsetMeans):
        raise ArgumentError(f"means must be maps [..., N, N] or OffsetMeans, got {type(means).__name__}")
    elif allowed is not None:
        raise ArgumentError("allowed goes with maps; OffsetMeans were summed over what SkewedLines was given")
    mean, error, pairs = means.mean, means.error, means.pairs
    ratio, surplus = torch.full_like(mean, float("nan")), torch.zeros_like(mean)
    if mean.shape[-1] > 3:
        inner, near = slice(2, -1), (mean[..., 1:-2] + mean[..., 3:]) / 2
        noise = (error[..., inner].square() + (error[..., 1:-2].square() + error[..., 3:].square()) / 4).sqrt()
        known = torch.stack([pairs[..., 1:-2], pairs[..., inner], pairs[..., 3:]]).amin(0) >= min_pairs
        ratio[..., inner] = torch.where(known & (near > 0), mean[..., inner] / near, float("nan"))
        surplus[..., inner] = (mean[..., inner] - near) / noise.clamp(min=1e-12)
    for offset in exclude:
        if 0 <= offset < ratio.shape[-1]:
            ratio[..., offset] = float("nan")
    is_line = (ratio > threshold) & (surplus > errors)
    best = ratio.nan_to_num(nan=-1.0)
    return Lines(ratio, is_line, torch.where(best.amax(-1) >= 0, best.argmax(-1), -1))


def parent_offset(parent: Tensor) -> int | None:
    """The offset at which more than half of the tokens of a tree have their parent, which a bright line there would be
    explained by; ``None``: there is no such offset.

    Args:
        parent: int64 ``[N]`` the place of each token's parent; negative for roots.
    """
    child = (parent >= 0).nonzero().flatten()
    if len(child) == 0:
        return None
    offsets, counts = (child - parent[child]).unique(return_counts=True)
    best = int(counts.argmax())
    return int(offsets[best]) if 2 * int(counts[best]) > len(child) else None
