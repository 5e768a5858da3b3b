"""Which tokens belong together: the members of a ragged batch, in every copy of a graph with leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graph.csr import batch_vector
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels import Structure, View, segment_sum, spread

__all__ = ["Members"]


class Members:
    """Tokens in the flat numbering of a graph's :attr:`~graphattn.TokenGraph.structure`, grouped by member.

    Without members and copies, all tokens are one group. Copies come one after another, each with all its members.

    Args:
        ptr: ``[M + 1]`` first token of each member of one copy; ``None``: one member.
        tokens: Tokens of one copy.
        copies: Copies.
        device: Where the tokens live.
    """

    def __init__(self, ptr: Tensor | None, tokens: int, copies: int, device: torch.device) -> None:
        self._ptr, self._tokens, self._copies, self._device = ptr, tokens, copies, device
        # Plain attributes: torch.compile does not enter the lock of functools.cached_property (Python 3.11).
        self._flat_ptr: Tensor | None = None
        self._member: Tensor | None = None

    @classmethod
    def of_targets(cls, graph: TokenGraph) -> Members:
        """The targets of a graph."""
        return cls(graph.target_ptr, graph.num_targets, graph.num_copies, graph.device)

    @classmethod
    def of_sources(cls, graph: TokenGraph) -> Members:
        """The sources of a graph."""
        return cls(graph.source_ptr, graph.num_sources, graph.num_copies, graph.device)

    @property
    def count(self) -> int:
        """M: members of all copies together."""
        return self._copies * (1 if self._ptr is None else self._ptr.shape[0] - 1)

    @property
    def ptr(self) -> Tensor:
        """int64 ``[M + 1]``: first token of each member, flat over the copies."""
        if self._flat_ptr is None:
            first = torch.arange(self._copies + 1, device=self._device) * self._tokens
            if self._ptr is not None:
                inside = self._ptr[:-1].long() + first[:-1].unsqueeze(1)
                first = torch.cat([inside.flatten(), first[-1:]])
            self._flat_ptr = first
        return self._flat_ptr

    @property
    def member(self) -> Tensor:
        """int64 ``[N]``: the member of each token."""
        if self._member is None:
            self._member = batch_vector(self.ptr, self._copies * self._tokens, self._device)
        return self._member

    @property
    def _structure(self) -> Structure:
        # Each token is an edge to its member: sums over members then have the kernels' order and gradients.
        every = torch.arange(self.member.shape[0] + 1, device=self._device)
        return Structure(
            View(self.ptr, every[:-1], self.member, None),
            View(every, self.member, every[:-1], None),
        )

    def sum(self, rows: Tensor, backend: str = "auto") -> Tensor:
        """Sum of the rows of each member: ``[N, ...]`` to ``[M, ...]``."""
        if self._ptr is None:
            return rows.unflatten(0, (self._copies, self._tokens)).sum(1)
        return segment_sum(self._structure, rows, backend=backend)

    def max(self, rows: Tensor) -> Tensor:
        """Maximum over the rows of each member, ``[N, ...]`` to ``[M, ...]``; -inf for an empty one. No gradient."""
        rows = rows.detach()
        if self._ptr is None and self._tokens:
            return rows.unflatten(0, (self._copies, self._tokens)).amax(1)
        return torch.segment_reduce(rows, "max", offsets=self.ptr, axis=0, unsafe=True, initial=float("-inf"))

    def spread(self, x: Tensor, backend: str = "auto") -> Tensor:
        """The row of its member at every token: ``[M, ...]`` to ``[N, ...]``."""
        if self._ptr is None:
            return x.unsqueeze(1).expand(-1, self._tokens, *x.shape[1:]).flatten(0, 1)
        if not x.is_floating_point():
            return x.index_select(0, self.member)
        return spread(self._structure, x, backend=backend)
