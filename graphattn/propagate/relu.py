"""The normalised ``ReLU(q k^T)`` of a dense graph as an operator: no number for each pair, however many hops."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.graph.rules import Blocks, Causal, Complete
from graphattn.propagate.operator import for_each_head
from graphattn_kernels import relu_attention

__all__ = ["ReluOperator", "is_dense", "of_one_size", "relu_hop"]

# Tokens of a member from which, on a CPU, a product for each member beats the walk along its edges. 4096 tokens in
# members of two sizes, 8 heads of 16, float32, one core, forward + backward: members of 32, products 138 ms and edges
# 90 ms; of 64, 101 and 179 ms; of 128, 126 and 336 ms.
_MEMBER = 64


def is_dense(graph: TokenGraph) -> bool:
    """Whether :func:`relu_hop` takes the graph: complete, causal, or complete inside members (on a CPU: members of one
    size, or large ones)."""
    rule = graph.pattern
    if not isinstance(rule, Blocks):
        return isinstance(rule, Complete) or type(rule) is Causal
    if rule.num_members == 0 or rule.num_targets == 0 or rule.num_sources == 0:
        return False
    # Other ways would wait for the sizes, which compiled code and a device must not.
    in_one = rule.device.type == "cuda" or torch.compiler.is_compiling() or of_one_size(rule)
    return in_one or rule.num_targets >= _MEMBER * rule.num_members


def of_one_size(graph: TokenGraph) -> bool:
    """Whether all members are known to be of one size, without waiting for the device."""
    rule = graph.pattern
    if not isinstance(rule, Blocks):
        return graph.num_members == 1
    may_look = rule.sizes_known or not (torch.compiler.is_compiling() or rule.device.type == "cuda")
    return may_look and rule.equal_members


def relu_hop(graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, *, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """One hop over a dense graph: outputs ``[..., T, H, C]`` and norms ``[..., M, H]`` of M members
    (:func:`graphattn_kernels.relu_attention`).

    Args:
        graph: A graph that :func:`is_dense` says yes to.
        q: ``[..., T, H, D]``.
        k: ``[..., S, H, D]``.
        v: ``[..., S, H, C]``.
        scale: Factor on the scores.
        eps: Added to the norm.
    """
    leading, heads, members = q.shape[:-3], q.shape[-2], graph.num_members
    if of_one_size(graph):
        causal = type(graph.pattern) is Causal
        if members == 1 and len(leading) == 1:  # as it is: a view less is time on the host
            out, norm = relu_attention(q, k, v, scale=scale, eps=eps, causal=causal)
            return out, norm.unsqueeze(-2)
        count = math.prod(leading) * members
        q, k, v = (x.reshape(count, x.shape[-3] // members, *x.shape[-2:]) for x in (q, k, v))
        out, norm = relu_attention(q, k, v, scale=scale, eps=eps, causal=causal)
        return out.reshape(*leading, graph.num_targets, *out.shape[-2:]), norm.reshape(*leading, members, heads)
    if leading:  # entries that share the graph are more heads
        q, k, v = (x.flatten(0, -4).transpose(0, 1).flatten(1, 2) for x in (q, k, v))
    out, norm = relu_attention(q, k, v, scale=scale, eps=eps, target_ptr=graph.target_ptr, source_ptr=graph.source_ptr)
    if leading:
        out, norm = (x.unflatten(1, (-1, heads)).transpose(0, 1).unflatten(0, leading) for x in (out, norm))
    return out, norm


class ReluOperator:
    """:math:`\\hat A_{ts} = \\operatorname{ReLU}(\\sigma q_t^\\top k_s) / (n + \\varepsilon)` as an
    :class:`~graphattn.propagate.AttentionOperator`, n the Frobenius norm over the member.

    Scores, and their gradients, are computed again at every product: memory is O(N).

    Args:
        graph: A graph that :func:`is_dense` says yes to.
        q: ``[T, H, D]``.
        k: ``[S, H, D]``.
        scale: Factor on the scores, positive.
        eps: Added to the norm.
        per_head: :meth:`AttentionOperator.per_head`, where leading dimensions are folded.
    """

    def __init__(
        self,
        graph: TokenGraph,
        q: Tensor,
        k: Tensor,
        *,
        scale: float,
        eps: float,
        per_head: Callable[[Tensor], Tensor] = for_each_head,
    ) -> None:
        self._graph, self._q, self._k = graph, q, k
        self._scale, self._eps = scale, eps
        self.per_head = per_head

    @property
    def num_targets(self) -> int:
        """Rows of A."""
        return self._graph.num_targets

    @property
    def num_sources(self) -> int:
        """Columns of A."""
        return self._graph.num_sources

    @property
    def members(self) -> Members:
        """See :attr:`AttentionOperator.members`."""
        return Members.of_targets(self._graph)

    def matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.matmul`."""
        return self._product(self._graph, self._q, self._k, x)[0]

    def t_matmul(self, x: Tensor) -> Tensor:
        """See :meth:`AttentionOperator.t_matmul`."""
        if type(self._graph.pattern) is Causal:  # its transpose is causal from the end
            return self._product(self._graph, *(rows.flip(0) for rows in (self._k, self._q, x)))[0].flip(0)
        return self._product(self._graph.T, self._k, self._q, x)[0]

    def row_sum(self) -> Tensor:
        """See :meth:`AttentionOperator.row_sum`."""
        return self.matmul(self._k.new_ones(*self._k.shape[:2], 1)).squeeze(-1)

    def magnitude(self) -> ReluOperator:
        """See :meth:`AttentionOperator.magnitude`; no weight is negative."""
        return self

    @torch.no_grad()
    def bound(self) -> Tensor:
        """See :meth:`AttentionOperator.bound`; the Frobenius norm, which is below 1."""
        nothing = self._k.new_zeros(*self._k.shape[:2], 1)
        norm = self._product(self._graph, self._q, self._k, nothing)[1]
        return norm / (norm + self._eps)

    def _product(self, graph: TokenGraph, q: Tensor, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # Many in turn are in the dtype that the caller chose, whatever autocast says.
        with torch.autocast(x.device.type, enabled=False):
            return relu_hop(graph, q, k, x, scale=self._scale, eps=self._eps)
