"""How much attention tokens receive: masked column means of attention maps."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.insight.maps import Columns, MapPart, PairValues, lag

__all__ = ["Received", "ReceivedAttention", "Reducer", "fai", "received_attention", "u_shape"]


class Reducer(Protocol):
    """What attention maps are reduced to, part after part, so that no map need be kept."""

    def update(self, part: MapPart) -> None:
        """Take another part of the maps."""

    def result(self) -> object:
        """What was asked for, once all parts are in."""


class Received(NamedTuple):
    """What :class:`ReceivedAttention` found.

    Args:
        attention: float64 ``[..., S]``: the mean over the targets that count; 0 where there is none.
        readers: int64 ``[..., S]``: how many these are.
        error: float64 ``[..., S]``: standard error of the mean, 0 for fewer than two.
    """

    attention: Tensor
    readers: Tensor
    error: Tensor


class ReceivedAttention:
    """Mean attention that each token receives from those that can see it.

    .. math:: r_j = \\sum_i C_{ij} A_{ij} \\Big/ \\sum_i C_{ij}

    with C the pairs that the graph allows (Guan et al., arXiv 2505.02130, whose notebooks take the mean over the
    entries that are not 0).

    Args:
        targets: bool ``[..., T]`` that broadcasts to the maps: the readers that count (text tokens, say).
        where: bool of pairs: those that count.
        lift: Multiply each weight by the number of sources that its target may read, which gives 1 wherever attention
            is spread evenly. Without it, the first columns of a causal map are brighter by its shape alone.
    """

    def __init__(self, targets: Tensor | None = None, where: PairValues | None = None, *, lift: bool = False) -> None:
        self._targets, self._where, self._lift = targets, where, lift
        self._sums: list[Tensor] | None = None

    def update(self, part: MapPart) -> None:
        """See :class:`Reducer`."""
        keep = part.allowed
        if self._targets is not None:
            keep = keep & part.at_targets(self._targets)
        if self._where is not None:
            keep = keep & part.at_pairs(self._where)
        weights = part.weights / torch.where(part.allowed, part.even, 1.0) if self._lift else part.weights
        kept = torch.where(keep, weights, 0.0)
        found = [part.by_source(x) for x in (kept, kept.square(), keep)]
        old = self._sums
        self._sums = found if old is None else [a + b for a, b in zip(old, found, strict=True)]

    def result(self) -> Received:
        """What was received, and from how many."""
        if self._sums is None:
            raise ArgumentError("there must be a part of a map before there is a result")
        total, squares, readers = self._sums
        mean = total / readers.clamp(min=1)
        spread = (squares / readers.clamp(min=1) - mean.square()).clamp(min=0)
        return Received(mean, readers.round().long(), (spread / (readers - 1).clamp(min=1)).sqrt())


def received_attention(
    weights: Tensor,
    allowed: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    where: PairValues | None = None,
    lift: bool = False,
) -> Tensor:
    """:class:`ReceivedAttention` of maps that are there as a whole.

    Args:
        weights: ``[..., T, S]``, a row a target.
        allowed: bool that broadcasts to it; default: where the weights are not 0.
        targets: See :class:`ReceivedAttention`.
        where: See :class:`ReceivedAttention`.
        lift: See :class:`ReceivedAttention`.

    Returns:
        float64 ``[..., S]``.
    """
    reducer = ReceivedAttention(targets, where, lift=lift)
    reducer.update(Columns(weights, allowed))
    return reducer.result().attention


def fai(low: int = 10, high: int = 50, *, targets: Tensor | None = None) -> ReceivedAttention:
    """Future attention influence: the mean attention that a token receives from those ``low`` to ``high`` places later.

    From "Preplan-and-Anchor" as its text gives it; the default horizon is that of a public re-implementation
    (unverified). The paper takes it over *global* heads: see :func:`~graphattn.insight.local_and_global`.

    Args:
        low: Nearest reader.
        high: Furthest reader.
        targets: bool ``[..., T]``: the readers that count (those of the response, say).
    """
    if not 0 <= low <= high:
        raise ArgumentError(f"low and high must satisfy 0 <= low <= high, got {low} and {high}")
    return ReceivedAttention(targets, lambda target, source: _between(lag(target, source), low, high))


def _between(x: Tensor, low: int, high: int) -> Tensor:
    return (x >= low) & (x <= high)


def u_shape(received: Tensor, *, share: float = 0.1) -> Tensor:
    """How much more the ends of a sequence receive than its middle: mean over the first and the last ``share`` of the
    tokens over the mean of the others; 1 for a flat curve.

    Args:
        received: ``[..., N]`` in the order of the tokens.
        share: Of the tokens at each end (at least one token).

    Returns:
        ``[...]``.

    Raises:
        ArgumentError: If there is no middle.
    """
    count = received.shape[-1]
    end = max(1, round(share * count))
    if count - 2 * end < 1:
        raise ArgumentError(f"received must have tokens between its ends, got {count} tokens and share {share}")
    ends = torch.cat([received[..., :end], received[..., -end:]], -1).mean(-1)
    return ends / received[..., end:-end].mean(-1)
