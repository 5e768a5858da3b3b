"""What every pattern is: a rule instead of a list of edges, and rules made of rules."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.token_graph import TokenGraph

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Difference", "Intersection", "Pattern", "Transposed", "Union", "csr_from_ranges"]


class Pattern(TokenGraph):
    """A graph given by a rule; its edges are enumerated only when somebody asks for them.

    A subclass says which edges there are (:meth:`contains`), how many (:attr:`num_edges`) and how to list them
    (:meth:`_enumerate`), target-major with ascending sources: the order of edge tensors. ``|``, ``&``, ``-``
    and ``.T`` of patterns are patterns.
    """

    _tensor_fields = (*TokenGraph._tensor_fields, "_anchor")

    def __init__(
        self,
        num_targets: int,
        num_sources: int,
        *,
        device: torch.device | str | None = None,
        target_ptr: Tensor | None = None,
        source_ptr: Tensor | None = None,
    ) -> None:
        super().__init__(
            None,
            num_targets=num_targets,
            num_sources=num_sources,
            target_ptr=target_ptr,
            source_ptr=source_ptr,
        )
        # A rule without tensors still lives on a device, and moves when tree_map moves its leaves.
        self._anchor = torch.empty(0, device=device)

    @abstractmethod
    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        """Whether the target may read the source.

        Traceable: usable in ``torch.compile`` and as a FlexAttention mask.

        Args:
            target: Integer target indices, any shape.
            source: Integer source indices, any shape that broadcasts with ``target``.

        Returns:
            Boolean tensor of the broadcast shape.
        """

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        """What the rule knows of whole rectangles of targets and sources, without looking at their pairs.

        Tiles of attention (:func:`~graphattn.graph.tiling.make_blocks`) are found with it, so that a long sequence
        never lists its edges. A subclass that knows better overrides it; saying too little only costs time.

        Args:
            t_first: Integer: the first target of each rectangle, any shape; the four broadcast.
            t_last: Its last target.
            s_first: Its first source.
            s_last: Its last source.

        Returns:
            Two boolean tensors that broadcast to the shape of the rectangles: whether some pair may be an edge
            (False: none is), and whether all pairs are edges (False: maybe not).
        """
        shape = torch.broadcast_shapes(t_first.shape, s_first.shape)
        some = torch.ones(shape, dtype=torch.bool, device=t_first.device)
        return some, torch.zeros_like(some)

    @abstractmethod
    def _enumerate(self) -> Csr:
        """All edges, target-major with ascending sources, each once, ``edge_id`` ``None``."""

    @property
    def max_edges(self) -> int:
        """An upper bound of :attr:`num_edges` that never enumerates; exact for simple patterns."""
        return self.num_edges

    @property
    def known_symmetric(self) -> bool:
        """Whether the rule itself says that each edge has its reverse (``False``: it may or may not)."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the edges will live."""
        return self._anchor.device

    @property
    def pattern(self) -> Self:
        """The pattern itself."""
        return self

    def transposed(self) -> Pattern:
        """The pattern with sources and targets exchanged."""
        return self if self.known_symmetric else Transposed(self)

    def _parameters(self) -> dict[str, object]:
        names = self._static_fields[len(TokenGraph._static_fields) :]
        return {name.lstrip("_"): getattr(self, name) for name in names}

    def __repr__(self) -> str:
        size = f"{self._num_targets}" if self.is_square else f"{self._num_targets} <- {self._num_sources}"
        parts = [f"tokens={size}", *(f"{name}={value}" for name, value in self._parameters().items())]
        if self._target_ptr is not None:
            parts.append(f"members={self.num_members}")
        return f"{type(self).__name__}({', '.join(parts)}, device={str(self.device)!r})"


class Transposed(Pattern):
    """A pattern with sources and targets exchanged."""

    _tensor_fields = (*Pattern._tensor_fields, "inner")

    def __init__(self, inner: Pattern) -> None:
        super().__init__(
            inner.num_sources,
            inner.num_targets,
            device=inner.device,
            target_ptr=inner.source_ptr,
            source_ptr=inner.target_ptr,
        )
        self.inner = inner
        self._leading, self._leading_axes = inner.leading, inner.leading_axes

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return self.inner.contains(source, target)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.tile(s_first, s_last, t_first, t_last)

    def transposed(self) -> Pattern:
        return self.inner

    @property
    def num_edges(self) -> int:
        return self.inner.num_edges

    @property
    def max_edges(self) -> int:
        return self.inner.max_edges

    def _enumerate(self) -> Csr:
        csc = self.inner.csc
        return Csr(csc.colptr, csc.row, None)

    def __repr__(self) -> str:
        return f"{self.inner!r}.T"


class _Pair(Pattern):
    """Two patterns of one size, combined."""

    _tensor_fields = (*Pattern._tensor_fields, "first", "second")
    _sign = ""

    def __init__(self, first: Pattern, second: Pattern, target_ptr: Tensor | None, source_ptr: Tensor | None) -> None:
        super().__init__(
            first.num_targets,
            first.num_sources,
            device=first.device,
            target_ptr=target_ptr,
            source_ptr=source_ptr,
        )
        self.first = first
        self.second = second
        self._leading, self._leading_axes = first.leading, first.leading_axes

    @property
    def num_edges(self) -> int:
        return self.csr.col.shape[0]

    @property
    def known_symmetric(self) -> bool:
        return self.first.known_symmetric and self.second.known_symmetric

    def _tiles(self, *rectangle: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return self.first.tile(*rectangle), self.second.tile(*rectangle)

    def _explicit(self, pattern: Pattern) -> TokenGraph:
        return TokenGraph(
            pattern.csr,
            num_targets=self._num_targets,
            num_sources=self._num_sources,
            leading=self._leading,
            leading_axes=self._leading_axes,
        )

    def __repr__(self) -> str:
        return f"({self.first!r} {self._sign} {self.second!r})"


class Union(_Pair):
    """Edges of the first pattern, the second, or both."""

    _sign = "|"

    @property
    def known_causal(self) -> bool:
        return self.first.known_causal and self.second.known_causal

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return self.first.contains(target, source) | self.second.contains(target, source)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        (some, every), (other, other_every) = self._tiles(t_first, t_last, s_first, s_last)
        return some | other, every | other_every

    @property
    def max_edges(self) -> int:
        pairs = self.num_copies * self._num_targets * self._num_sources
        return min(self.first.max_edges + self.second.max_edges, pairs)

    def _enumerate(self) -> Csr:
        from graphattn.graph import algebra

        return algebra.union(self._explicit(self.first), self._explicit(self.second)).csr


class Intersection(_Pair):
    """Edges of both patterns."""

    _sign = "&"

    @property
    def known_causal(self) -> bool:
        return self.first.known_causal or self.second.known_causal

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return self.first.contains(target, source) & self.second.contains(target, source)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        (some, every), (other, other_every) = self._tiles(t_first, t_last, s_first, s_last)
        return some & other, every & other_every

    @property
    def max_edges(self) -> int:
        return min(self.first.max_edges, self.second.max_edges)

    def _enumerate(self) -> Csr:
        from graphattn.graph import algebra

        # List the smaller one; the rule of the other says which edges stay.
        small, large = sorted((self.first, self.second), key=lambda pattern: pattern.max_edges)
        return algebra.intersection(self._explicit(small), large).csr


class Difference(_Pair):
    """Edges of the first pattern that are not edges of the second."""

    _sign = "-"

    @property
    def known_causal(self) -> bool:
        return self.first.known_causal

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return self.first.contains(target, source) & ~self.second.contains(target, source)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        (some, every), (other, other_every) = self._tiles(t_first, t_last, s_first, s_last)
        return some & ~other_every, every & ~other

    @property
    def max_edges(self) -> int:
        return self.first.max_edges

    def _enumerate(self) -> Csr:
        from graphattn.graph import algebra

        return algebra.difference(self._explicit(self.first), self.second).csr


def csr_from_ranges(start: Tensor, count: Tensor, num_sources: int, num_edges: int, step: int = 1) -> Csr:
    """Edges of targets that each read ``start, start + step, ...``, ``count`` sources in all.

    Args:
        start: int64 ``[T]`` first source of each target.
        count: int64 ``[T]`` number of sources of each target.
        num_sources: Number of sources of the graph.
        num_edges: Sum of ``count``; known in closed form, so that nothing waits for the device.
        step: Distance between the sources of a target.

    Returns:
        The edges, without ``edge_id``.
    """
    dtype = index_dtype(start.shape[0], num_sources, num_edges)
    rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)]).to(dtype)
    col = torch.arange(num_edges, dtype=dtype, device=start.device)
    col -= torch.repeat_interleave(rowptr[:-1], count, output_size=num_edges)
    if step != 1:
        col *= step
    col += torch.repeat_interleave(start.to(dtype), count, output_size=num_edges)
    return Csr(rowptr, col, None)
