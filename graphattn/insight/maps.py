"""Parts of an attention map, as what sums over them needs: some columns of a matrix, or a list of edges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

__all__ = ["Columns", "Edges", "KeptMaps", "MapPart", "PairValues", "lag", "one_hot_rows"]

PairValues = Tensor | Callable[[Tensor, Tensor], Tensor]
"""A value for each pair of target and source: ``[..., T, S]``, where leading dimensions broadcast to those of the map,
or a function of integer indices ``(target, source)`` that broadcast."""


def lag(target: Tensor, source: Tensor) -> Tensor:
    """How many places the source is before the target: the distance in a sequence."""
    return target - source


class MapPart(ABC):
    """A part of the maps ``[*leading, T, S]`` of one call of attention; rows are targets. Leading dimensions are those
    of the call, with the heads last. All sums are in float64.

    Attributes:
        weights: In a shape of its own, with which what the methods below return broadcasts.
        allowed: bool, whether the target may read the source.
        even: What the weight would be if the target read all that it may alike; 0 where it may not.
        leading: Shape of what is summed, before the tokens.
        num_targets: T.
        num_sources: S.
    """

    weights: Tensor
    allowed: Tensor
    even: Tensor
    leading: tuple[int, ...]
    num_targets: int
    num_sources: int

    @abstractmethod
    def at_targets(self, x: Tensor) -> Tensor:
        """Values of targets, ``[..., T]``, at each weight."""

    @abstractmethod
    def at_sources(self, x: Tensor) -> Tensor:
        """Values of sources, ``[..., S]``, at each weight."""

    @abstractmethod
    def at_pairs(self, x: PairValues) -> Tensor:
        """Values of pairs at each weight."""

    @abstractmethod
    def by_source(self, x: Tensor) -> Tensor:
        """Sums of ``x``, in the shape of the weights, over targets: ``[*leading, S]``."""

    @abstractmethod
    def by_target(self, x: Tensor) -> Tensor:
        """Sums over sources: ``[*leading, T]``."""

    @abstractmethod
    def by_bin(self, x: Tensor, bins: Tensor, count: int) -> Tensor:
        """Sums over all pairs of one bin (integers below ``count``): ``[*leading, count]``."""

    def to_dense(self) -> Tensor:
        """The maps, ``[*leading, T, S]``, with 0 at sources of other parts."""
        source = self.at_sources(torch.arange(self.num_sources, device=self.weights.device))
        return self.by_target_and_bin(self.weights, source, self.num_sources)

    @abstractmethod
    def by_target_and_bin(self, x: Tensor, bins: Tensor, count: int) -> Tensor:
        """Sums over the sources of one bin: ``[*leading, T, count]``."""


def _spread(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    try:
        return x.expand(shape)
    except RuntimeError as error:
        raise ArgumentError(f"{name} must broadcast to {list(shape)}, got {list(x.shape)}") from error


class Columns(MapPart):
    """Some columns of dense maps.

    Args:
        weights: ``[..., T, C]``.
        allowed: bool that broadcasts to it, where all columns are given; default: where the weights are not 0, as in
            the notebooks of Guan et al. (arXiv 2505.02130).
        even: Instead of ``allowed``, where only some columns are given: see :class:`MapPart`.
        first: The source of the first column.
        num_sources: S; default: as many as there are columns.
    """

    def __init__(
        self,
        weights: Tensor,
        allowed: Tensor | None = None,
        *,
        even: Tensor | None = None,
        first: int = 0,
        num_sources: int | None = None,
    ) -> None:
        if weights.dim() < 2 or not weights.is_floating_point():
            raise ArgumentError(f"weights must be floating [..., T, S], got {weights.dtype} {list(weights.shape)}")
        self.weights = weights.detach().double()
        if even is None:
            kept = self.weights != 0 if allowed is None else _spread(allowed, tuple(weights.shape), "allowed")
            even = kept.double() / kept.sum(-1, keepdim=True).clamp(min=1)
        self.even = _spread(even, tuple(weights.shape), "even").double()
        self.allowed = self.even > 0
        *leading, self.num_targets, columns = weights.shape
        self.leading = tuple(leading)
        self.num_sources = first + columns if num_sources is None else num_sources
        self._columns = slice(first, first + columns)
        self._target = torch.arange(self.num_targets, device=weights.device).unsqueeze(-1)
        self._source = torch.arange(self.num_sources, device=weights.device)[self._columns]

    def at_targets(self, x: Tensor) -> Tensor:
        return _spread(x, (*self.leading, self.num_targets), "values of targets").unsqueeze(-1)

    def at_sources(self, x: Tensor) -> Tensor:
        return _spread(x, (*self.leading, self.num_sources), "values of sources")[..., self._columns].unsqueeze(-2)

    def at_pairs(self, x: PairValues) -> Tensor:
        if not isinstance(x, Tensor):
            return x(self._target, self._source).expand(self.weights.shape)
        return _spread(x, (*self.leading, self.num_targets, self.num_sources), "values of pairs")[..., self._columns]

    def by_source(self, x: Tensor) -> Tensor:
        total = self.weights.new_zeros(*self.leading, self.num_sources)
        total[..., self._columns] = x.expand(self.weights.shape).double().sum(-2)
        return total

    def by_target(self, x: Tensor) -> Tensor:
        return x.expand(self.weights.shape).double().sum(-1)

    def by_bin(self, x: Tensor, bins: Tensor, count: int) -> Tensor:
        return self._sums(x.expand(self.weights.shape).flatten(-2), bins.expand(self.weights.shape).flatten(-2), count)

    def by_target_and_bin(self, x: Tensor, bins: Tensor, count: int) -> Tensor:
        return self._sums(x.expand(self.weights.shape), bins.expand(self.weights.shape), count)

    @staticmethod
    def _sums(x: Tensor, bins: Tensor, count: int) -> Tensor:
        return x.new_zeros(*x.shape[:-1], count, dtype=torch.float64).scatter_add_(-1, bins.long(), x.double())


class Edges(MapPart):
    """All weights of one call, as edges.

    Args:
        graph: Who may read whom.
        weights: ``[..., E, H]``, or ``[E]`` of one head, in the graph's edge order.
    """

    def __init__(self, graph: TokenGraph, weights: Tensor) -> None:
        wide = weights.unsqueeze(-1) if weights.dim() == 1 else weights
        if wide.shape[-2] != graph.num_edges or (graph.leading and wide.dim() != 2):
            raise ArgumentError(f"weights must be [..., {graph.num_edges}, H], got {list(weights.shape)}")
        self.num_targets, self.num_sources = graph.num_targets, graph.num_sources
        self._axes, own = graph.leading_axes, graph.leading
        heads = wide.shape[-1]
        if not self._axes:
            self.leading = (*wide.shape[:-2], heads) if weights.dim() > 1 else ()
        else:
            self.leading = own if self._axes.endswith("h") else (*own, heads)
        self._copies = graph.num_copies
        self.weights = wide.detach().movedim(-2, 0).flatten(1).double()  # [E, columns]
        self.allowed = torch.ones(1, dtype=torch.bool, device=weights.device)
        self._flat_source, self._flat_target = graph.edge_index
        self.even = 1.0 / graph.in_degree[self._flat_target].double().unsqueeze(-1)
        self._copy = self._flat_target // max(1, self.num_targets)
        self._target = self._flat_target % max(1, self.num_targets)
        self._source = self._flat_source % max(1, self.num_sources)

    def at_targets(self, x: Tensor) -> Tensor:
        return self._look_up(x, (self.num_targets,), (self._target,), "values of targets")

    def at_sources(self, x: Tensor) -> Tensor:
        return self._look_up(x, (self.num_sources,), (self._source,), "values of sources")

    def at_pairs(self, x: PairValues) -> Tensor:
        if not isinstance(x, Tensor):
            return x(self._target, self._source).unsqueeze(-1)
        return self._look_up(x, (self.num_targets, self.num_sources), (self._target, self._source), "values of pairs")

    def by_source(self, x: Tensor) -> Tensor:
        return self._sums(x, self._flat_source.unsqueeze(-1), self.num_sources)

    def by_target(self, x: Tensor) -> Tensor:
        return self._sums(x, self._flat_target.unsqueeze(-1), self.num_targets)

    def by_bin(self, x: Tensor, bins: Tensor, count: int) -> Tensor:
        return self._sums(x, self._copy.unsqueeze(-1) * count + bins, count)

    def by_target_and_bin(self, x: Tensor, bins: Tensor, count: int) -> Tensor:
        found = self._sums(x, self._flat_target.unsqueeze(-1) * count + bins, self.num_targets * count)
        return found.unflatten(-1, (self.num_targets, count))

    def _look_up(self, x: Tensor, sizes: tuple[int, ...], index: tuple[Tensor, ...], name: str) -> Tensor:
        """At each edge: ``[E, columns]``."""
        wide = _spread(x, (*self.leading, *sizes), name)
        if not self._axes:
            last, first = tuple(range(-len(sizes), 0)), tuple(range(len(sizes)))
            return wide.movedim(last, first)[index].reshape(self.weights.shape)
        copies = wide.reshape(self._copies, *wide.shape[len(self.leading) - (self._axes == "b") :])
        if self._axes.endswith("h"):
            return copies[(self._copy, *index)].unsqueeze(-1)
        return copies.movedim(1, -1)[(self._copy, *index)]

    def _sums(self, x: Tensor, place: Tensor, size: int) -> Tensor:
        """Sums of ``x`` by place (``[E, columns]`` or ``[E, 1]``, below copies * size): ``[*leading, size]``."""
        x = x.expand(self.weights.shape).double()
        total = x.new_zeros(self._copies * size, x.shape[1]).scatter_add_(0, place.expand(x.shape).long(), x)
        if not self._axes:
            return total.T.reshape(*self.leading, size)
        if self._axes.endswith("h"):
            return total.reshape(*self.leading, size)
        return total.unflatten(0, (self._copies, size)).transpose(1, 2)


class KeptMaps:
    """The maps themselves of the first prompts, averaged over heads, to be drawn: float64 ``[count, T, S]``.

    Args:
        count: How many entries of the batch; of maps without a batch, the one there is.
    """

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._maps: Tensor | None = None

    def update(self, part: MapPart) -> None:
        """See :class:`~graphattn.insight.Reducer`."""
        maps = part.to_dense()
        maps = maps.flatten(0, -4) if len(part.leading) > 1 else maps.reshape(1, -1, *maps.shape[-2:])
        found = maps[: self._count].mean(1)
        self._maps = found if self._maps is None else self._maps + found

    def result(self) -> Tensor:
        """The maps."""
        if self._maps is None:
            raise ArgumentError("there must be a part of a map before there is a result")
        return self._maps


def one_hot_rows(values: Tensor, first: int) -> Tensor:
    """Fill zeros ``[..., S, D]`` so that source ``first + c`` has a one in channel c: a hop then gives the weights of D
    sources, side by side."""
    count = min(values.shape[-1], values.shape[-2] - first)
    place = torch.arange(count, device=values.device)
    values[..., first + place, place] = 1
    return values
