"""Every pair of a dense graph, computed again whenever it is needed: an operator that never lists an edge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.graph.rules import Blocks, Complete
from graphattn.propagate._blockwise import blockwise
from graphattn.propagate._dense import Padded
from graphattn.propagate.operator import for_each_head

__all__ = ["PairOperator"]

# Numbers in one [members, heads, rows, sources] block.
_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True)
class PairOperator:
    """:math:`A_{ts} = r_t\\, f(g(q_t^\\top k_s) - m_t)\\, c_s` on the edges of a pattern, as an
    :class:`~graphattn.propagate.AttentionOperator`.

    Every product computes the weights again, in blocks of targets, and so does its backward pass: memory is a block
    times the sources, time that of all pairs of a member. So it is for patterns that are dense in their members:
    complete, causal, prefix, blocks.

    Args:
        graph: A pattern without leading dimensions.
        q: ``[T, H, D]``.
        k: ``[S, H, D]``.
        score: g, element by element.
        weigh: f, element by element.
        nothing: The score of a pair that is no edge, where f is 0.
        row_factor: r, ``[T, H]``; default: 1.
        column_factor: c, ``[S, H]``; default: 1.
        shift: m, ``[T, H]``; default: 0.
        per_head: :meth:`AttentionOperator.per_head`, where leading dimensions are folded.
    """

    graph: TokenGraph
    q: Tensor
    k: Tensor
    score: Callable[[Tensor], Tensor]
    weigh: Callable[[Tensor], Tensor]
    nothing: float
    row_factor: Tensor | None = None
    column_factor: Tensor | None = None
    shift: Tensor | None = None
    per_head: Callable[[Tensor], Tensor] = for_each_head

    def with_factors(
        self, row: Tensor | None = None, column: Tensor | None = None, shift: Tensor | None = None
    ) -> PairOperator:
        """The same weights with other factors."""
        return replace(self, row_factor=row, column_factor=column, shift=shift)

    @property
    def num_targets(self) -> int:
        """Rows of A."""
        return self.graph.num_targets

    @property
    def num_sources(self) -> int:
        """Columns of A."""
        return self.graph.num_sources

    @property
    def members(self) -> Members:
        """See :attr:`AttentionOperator.members`."""
        return Members.of_targets(self.graph)

    def matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.matmul`."""
        return self._rows(lambda w, x: w @ x, x)

    def t_matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.t_matmul`."""
        layout = _Layout(self.graph)
        x = layout.targets(_times(x, self.row_factor))
        shape = (*x.shape[:2], layout.num_sources, x.shape[-1])

        def run(rows: slice, x: Tensor, *tensors: Tensor) -> Tensor:
            return self._weights(layout, rows, *tensors).mT @ x[:, :, rows]

        y = blockwise(run, self._blocks(layout), x, *self._tensors(layout), shape=shape, add=True)
        return _times(layout.from_sources(y), self.column_factor)

    def row_sum(self) -> Tensor:
        """See :meth:`AttentionOperator.row_sum`."""
        return self.matmul(self.k.new_ones(*self.k.shape[:2], 1)).squeeze(-1)

    def column_sum(self) -> Tensor:
        """:math:`A^T 1`: ``[S, H]``."""
        return self.t_matmul(self.q.new_ones(*self.q.shape[:2], 1)).squeeze(-1)

    def square_sum(self) -> Tensor:
        """The sum of the squares of each row's weights, ``[T, H]``."""
        row, column = (None if x is None else x.square() for x in (self.row_factor, self.column_factor))
        squares = replace(self, row_factor=row, column_factor=column)
        return squares._rows(lambda w, x: w.square() @ x, self.k.new_ones(*self.k.shape[:2], 1)).squeeze(-1)

    @torch.no_grad()
    def row_max(self) -> Tensor:
        """The largest score of each row, ``[T, H]``, for ``nothing=-inf``; 0 for a row without edges. No gradient."""
        layout = _Layout(self.graph)
        tensors = self._tensors(layout)
        top = self.q.new_full((*tensors[0].shape[:3], 1), float("-inf"))
        if layout.num_sources:
            for rows in self._blocks(layout):
                top[:, :, rows] = self._scores(layout, rows, *tensors).amax(-1, keepdim=True)
        top = layout.from_targets(top).squeeze(-1)
        return top.masked_fill(top == float("-inf"), 0.0)

    def magnitude(self) -> PairOperator:
        """See :meth:`AttentionOperator.magnitude`."""
        row, column = (None if x is None else x.detach().abs() for x in (self.row_factor, self.column_factor))
        return replace(self, weigh=lambda scores: self.weigh(scores).abs(), row_factor=row, column_factor=column)

    @torch.no_grad()
    def bound(self) -> Tensor:
        """See :meth:`AttentionOperator.bound`."""
        size = self.magnitude()
        norm = self.members.sum(self.square_sum()).sqrt()
        rows = self.members.max(size.row_sum())
        columns = Members.of_sources(self.graph).max(size.column_sum())
        return torch.minimum(torch.minimum(rows, columns), norm).clamp(min=0.0)

    def _rows(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """``function(weights [M, H, rows, S], x [M, H, S, D])`` of every block of targets, and the factors."""
        layout = _Layout(self.graph)
        x, tensors = layout.sources(_times(x, self.column_factor)), self._tensors(layout)

        def run(rows: slice, x: Tensor, *tensors: Tensor) -> Tensor:
            return function(self._weights(layout, rows, *tensors), x)

        shape = (*tensors[0].shape[:3], x.shape[-1])
        y = blockwise(run, self._blocks(layout), x, *tensors, shape=shape, add=False)
        return _times(layout.from_targets(y), self.row_factor)

    def _tensors(self, layout: _Layout) -> tuple[Tensor, ...]:
        """q, k and, if there is one, the shift, as the layout has them."""
        q, k = layout.targets(self.q), layout.sources(self.k)
        return (q, k) if self.shift is None else (q, k, layout.targets(self.shift.unsqueeze(-1)))

    def _blocks(self, layout: _Layout) -> list[slice]:
        row = layout.count * self.q.shape[1] * layout.num_sources
        step = max(1, _BLOCK.get(self.q.device.type, 1 << 20) // max(1, row))
        return [slice(n, min(n + step, layout.num_targets)) for n in range(0, layout.num_targets, step)]

    def _scores(self, layout: _Layout, rows: slice, q: Tensor, k: Tensor, shift: Tensor | None = None) -> Tensor:
        """``[M, H, rows, S]``."""
        scores = self.score(q[:, :, rows] @ k.mT)
        if shift is not None:
            scores = scores - shift[:, :, rows]
        allowed = layout.allowed(rows)
        return scores if allowed is None else scores.masked_fill(~allowed, self.nothing)

    def _weights(self, layout: _Layout, rows: slice, *tensors: Tensor) -> Tensor:
        """The same before the factors."""
        return self.weigh(self._scores(layout, rows, *tensors))


class _Layout:
    """Members brought to one size, heads before tokens: ``[N, H, D]`` and ``[M, H, n, D]``."""

    def __init__(self, graph: TokenGraph) -> None:
        self._graph = graph
        self.count = graph.num_members
        self._ragged = self.count > 1 and not (isinstance(graph, Blocks) and graph.sizes_known and graph.equal_members)
        if self._ragged:
            of_targets, of_sources = Members.of_targets(graph), Members.of_sources(graph)
            sizes = [int(m.ptr.diff().max()) for m in (of_targets, of_sources)]  # waits for the device
            self._targets, self._sources = Padded(of_targets, sizes[0]), Padded(of_sources, sizes[1])
            self.num_targets, self.num_sources = sizes
        else:
            self.num_targets, self.num_sources = graph.num_targets // self.count, graph.num_sources // self.count

    def targets(self, x: Tensor) -> Tensor:
        return self._targets.pad(x) if self._ragged else self._split(x, self.num_targets)

    def sources(self, x: Tensor) -> Tensor:
        return self._sources.pad(x) if self._ragged else self._split(x, self.num_sources)

    def from_targets(self, x: Tensor) -> Tensor:
        return self._targets.unpad(x) if self._ragged else x.transpose(1, 2).flatten(0, 1)

    def from_sources(self, x: Tensor) -> Tensor:
        return self._sources.unpad(x) if self._ragged else x.transpose(1, 2).flatten(0, 1)

    def allowed(self, rows: slice) -> Tensor | None:
        """Which pairs of a block are edges, broadcast to ``[M, H, rows, S]``; ``None``: all."""
        pattern = self._graph.pattern
        assert pattern is not None
        source = torch.arange(self.num_sources, device=self._graph.device)
        if self._ragged:
            return (source < Members.of_sources(self._graph).ptr.diff().unsqueeze(1)).reshape(-1, 1, 1, len(source))
        if isinstance(pattern, (Blocks, Complete)):
            return None
        target = torch.arange(rows.start, rows.stop, device=self._graph.device)
        return pattern.contains(target.unsqueeze(1), source)

    def _split(self, x: Tensor, size: int) -> Tensor:
        return x.reshape(self.count, size, *x.shape[1:]).transpose(1, 2)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor.unsqueeze(-1)
