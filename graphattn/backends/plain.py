"""What the backends without edge tensors share: the options that they lack, and their layout ``[B, N, H, D]``."""

from __future__ import annotations

import math

from torch import Tensor

from graphattn.backends.base import Call
from graphattn.graph import TokenGraph

__all__ = ["Layout", "lacks", "positive_scale"]


def lacks(call: Call, *, clamp: bool = False, lse: bool = False, rule: bool = False) -> str | None:
    """The first thing that a call asks for and a backend without edge tensors does not have; ``None``: it has all.

    Args:
        call: The call.
        clamp: The backend has a clamp.
        lse: It returns the log-sum-exp.
        rule: It takes an edge_bias given as a function.
    """
    graph = call.graph
    if call.score.fused != "dot":
        return f"it knows the dot score only, got {type(call.score).__name__}"
    if call.edge_gate is not None:
        return "it has no edge_gate"
    if call.edge_bias is not None and not (rule and callable(call.edge_bias)):
        return "it has no edge_bias" + (" but a function" if rule else "")
    if call.clamp is not None and not clamp:
        return "it has no clamp"
    if call.dropout_p:
        return "it has no dropout that can be repeated from dropout_seed"
    if call.need_product:
        return "it does not return the product of each edge"
    if call.need_lse and not lse:
        return "it does not return the log-sum-exp"
    if graph.num_targets == 0 or graph.num_sources == 0:
        return "the graph has no tokens on one side"
    if call.q.numel() == 0 or call.v.numel() == 0:
        return "there is nothing to compute"
    return None


def positive_scale(q: Tensor, scale: float | None) -> tuple[Tensor, float | None]:
    """Queries and a positive scale that give the same scores: of any other, kernels that set the scores of later tokens
    to -inf before they scale them make NaN."""
    if scale is None or scale > 0:
        return q, scale
    return q * (-1.0 if scale < 0 else 0.0), -scale or 1.0


class Layout:
    """Leading dimensions as one: ``[*leading, N, H, D]`` to ``[B, N, H', D]``.

    A graph for each batch entry leaves its own dimension as B, and further ones become heads.

    Args:
        graph: The graph.
        like: Tokens ``[*leading, N, H, D]``.
    """

    def __init__(self, graph: TokenGraph, like: Tensor) -> None:
        self.leading, self.heads = tuple(like.shape[:-3]), like.shape[-2]
        self._own = graph.leading_axes.startswith("b")
        self.shared = math.prod(self.leading[:-1]) if self._own else 1
        # Nothing to fold: views cost the host as much as a small kernel costs the device.
        self._as_it_is = len(self.leading) == 1 and self.shared == 1

    @staticmethod
    def reason(call: Call) -> str | None:
        """Why there is no such layout; ``None``: there is."""
        if call.graph.leading_axes == "bh" and math.prod(call.q.shape[:-4]) != 1:
            return "a graph for each head of each batch entry goes with one leading dimension"
        return None

    def fold(self, x: Tensor) -> Tensor:
        """To ``[B, N, H', D]``."""
        if self._as_it_is:
            return x
        if not self._own:
            return x.reshape(math.prod(self.leading), *x.shape[-3:])
        x = x.reshape(self.shared, *x.shape[-4:])
        return x.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def unfold(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`fold`; for ``[B, N, H']`` as well."""
        if self._as_it_is:
            return x
        if self._own:
            x = x.unflatten(2, (self.shared, self.heads)).movedim(2, 0)
            return x.reshape(*self.leading, *x.shape[2:])
        return x.reshape(*self.leading, *x.shape[1:])
