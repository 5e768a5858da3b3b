"""Leading dimensions folded away: the kernels see tokens, heads and channels only.

Where one graph serves every entry of a leading dimension, that dimension becomes more heads. Where the graph has
a copy for each entry (or head), the copies become more tokens of one block-diagonal graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

__all__ = ["Fold"]


class Fold:
    """How the tensors of one call fold, and unfold again.

    Args:
        graph: The token graph.
        leading: Leading dimensions of the token tensors, ``x [*leading, N, H, D]``.
        heads: H.
    """

    def __init__(self, graph: TokenGraph, leading: tuple[int, ...], heads: int) -> None:
        axes, sizes = graph.leading_axes, graph.leading
        self._per_head = axes.endswith("h")
        self._copies = sizes[0] if axes.startswith("b") else 1
        if self._per_head and sizes[-1] != heads:
            raise ArgumentError(f"graph has one graph for each of {sizes[-1]} heads, q, k and v have {heads}")
        if axes.startswith("b"):
            if not leading or leading[-1] != sizes[0]:
                raise ArgumentError(
                    f"graph has one graph for each of {sizes[0]} batch entries, so q, k and v must be "
                    f"[..., {sizes[0]}, N, H, D]; their leading dimensions are {list(leading)}"
                )
            self._shared = leading[:-1]
        else:
            self._shared = leading
        self._graph = graph
        self._leading = leading
        self._heads = heads
        # Heads of one copy: a graph for each head leaves one head in each copy.
        self.local_heads = 1 if self._per_head else heads
        self._repeat = math.prod(self._shared)

    def tokens(self, x: Tensor) -> Tensor:
        """``[*leading, N, H, D]`` to ``[copies * N, repeats * heads, D]``."""
        if not self._leading and not self._per_head:
            return x
        tokens, heads, channels = x.shape[-3:]
        x = x.reshape(self._repeat, self._copies, tokens, heads, channels)
        if self._per_head:
            return x.permute(1, 3, 2, 0, 4).reshape(self._copies * heads * tokens, self._repeat, channels)
        return x.permute(1, 2, 0, 3, 4).reshape(self._copies * tokens, self._repeat * heads, channels)

    def untokens(self, x: Tensor, tokens: int) -> Tensor:
        """The inverse of :meth:`tokens`."""
        if not self._leading and not self._per_head:
            return x
        channels = x.shape[-1]
        if self._per_head:
            x = x.reshape(self._copies, self._heads, tokens, self._repeat, channels).permute(3, 0, 2, 1, 4)
        else:
            x = x.reshape(self._copies, tokens, self._repeat, self._heads, channels).permute(2, 0, 1, 3, 4)
        return x.reshape(*self._leading, tokens, self._heads, channels)

    def edges(self, name: str, x: Tensor | None, num_edges: int, *, channels: bool = False) -> Tensor | None:
        """An edge tensor, ``[E]``, ``[E, H]`` or ``[*shared, E, H]`` (and ``D`` last, with channels), to
        ``[E, repeats * heads]`` (and ``D``)."""
        if x is None:
            return None
        last = 1 if channels else 0
        if x.dim() == 2 + last and self._repeat == 1 and x.shape[0] == num_edges and x.shape[1] == self.local_heads:
            return x  # as it is: each view is a node of autograd
        given = list(x.shape)
        if x.dim() == 1 + last:
            x = x.unsqueeze(1)
        lead = tuple(x.shape[: -2 - last])
        fits = x.dim() >= 2 + last and x.shape[-2 - last] == num_edges
        # One comparison at a time: torch.compile does not find a symbolic size in a tuple (torch 2.13).
        fits = fits and (x.shape[-1 - last] == self.local_heads or x.shape[-1 - last] == 1)
        if not fits or (lead and lead != self._shared):
            raise ArgumentError(
                f"{name} must be {'[E, D], [E, H, D]' if channels else '[E], [E, H]'}, with E = {num_edges} edges "
                f"and H = {self.local_heads} heads, and leading dimensions {list(self._shared)} or none; got {given}"
            )
        if lead:
            x = x.reshape(self._repeat, *x.shape[len(lead) :]).movedim(0, 1)
        else:
            x = x.unsqueeze(1)
        x = x.expand(-1, self._repeat, self.local_heads, *x.shape[3:])
        return x.reshape(num_edges, self._repeat * self.local_heads, *x.shape[3:])

    def bias(
        self, bias: Tensor | Callable[[Tensor, Tensor, Tensor], Tensor] | None, like: Tensor, num_edges: int
    ) -> Tensor | None:
        """A bias, given as rows or as a rule, as :meth:`edges` gives it."""
        return self.edges("edge_bias", self.evaluate(bias, like) if callable(bias) else bias, num_edges)

    def heads(self, x: Tensor) -> Tensor:
        """Parameters of each head, ``[H, ...]`` to ``[repeats * H, ...]``; not for a graph for each head."""
        return x if self._repeat == 1 else x.repeat(self._repeat, *(1 for _ in x.shape[1:]))

    def per_head(self, x: Tensor) -> Tensor:
        """A number for each head, ``[]`` or ``[H]``, as it multiplies the rows of :meth:`tokens` at the targets:
        ``[1 or copies * T, 1 or repeats * heads, 1]``."""
        if x.dim() > 1 or (x.dim() == 1 and x.shape[0] not in (1, self._heads)):
            raise ArgumentError(f"a number for each head must be [] or [{self._heads}], got {list(x.shape)}")
        if x.numel() == 1:
            return x.reshape(1, 1, 1)
        if self._per_head:
            return x.repeat_interleave(self._graph.num_targets).repeat(self._copies).reshape(-1, 1, 1)
        return self.heads(x).reshape(1, -1, 1)

    def edge_heads(self, x: Tensor) -> Tensor:
        """``[E, repeats * heads, ...]`` to ``[E, repeats, heads, ...]``, for scores with a parameter for each head.

        Where an edge belongs to one head, it is shown to the parameters of all; :meth:`own_head` picks the answer.
        """
        x = x.reshape(x.shape[0], self._repeat, self.local_heads, *x.shape[2:])
        return x.expand(-1, -1, self._heads, *x.shape[3:])

    def own_head(self, scores: Tensor) -> Tensor:
        """``[E, repeats, heads]`` to ``[E, repeats, local heads]``."""
        head = self.head_of_edge()
        if head is None:
            return scores
        return scores.take_along_dim(head[:, None, None].expand(-1, self._repeat, 1), dim=2)

    def head_of_edge(self) -> Tensor | None:
        """int64 ``[E]``: the head that each edge belongs to, where there is a graph for each head."""
        if not self._per_head:
            return None
        return self._graph.edge_index[1] // self._graph.num_targets % self._heads

    def evaluate(self, bias: Callable[[Tensor, Tensor, Tensor], Tensor], like: Tensor) -> Tensor:
        """``bias(target, source, head)`` on every edge, ``[E, local heads]``."""
        source, target = self._graph.edge_index
        head = self.head_of_edge()
        head = torch.arange(self._heads, device=target.device) if head is None else head.unsqueeze(1)
        # Tokens of the copies of a graph are numbered on; a rule speaks of each copy.
        target, source = target % self._graph.num_targets, source % self._graph.num_sources
        value = bias(target.unsqueeze(1), source.unsqueeze(1), head)
        shape = (target.shape[0], self.local_heads)
        try:
            return torch.broadcast_to(value, shape).to(like.dtype)
        except (RuntimeError, TypeError, AttributeError):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                f"edge_bias(target, source, head) must return a tensor that broadcasts to {list(shape)}, got {got}"
            ) from None

    def unedges(self, x: Tensor) -> Tensor:
        """``[E, repeats * heads, ...]`` to ``[*shared, E, heads, ...]``."""
        if not self._shared:
            return x
        x = x.reshape(x.shape[0], self._repeat, self.local_heads, *x.shape[2:]).movedim(1, 0)
        return x.reshape(*self._shared, *x.shape[1:])
