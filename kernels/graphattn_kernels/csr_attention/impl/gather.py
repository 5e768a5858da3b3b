"""Gather and run-wise reductions in chunks of owners; the gradient is a row pass and a column pass.

Memory: one chunk of ``[edges, heads, channels]`` buffers, and in the backward pass two numbers for each edge
and head, which carry the weights from the row pass to the column pass. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels._random import dropout_scale
from graphattn_kernels.csr_attention.inputs import Inputs, contiguous_like
from graphattn_kernels.segment_softmax.impl.gather import normalize_runs
from graphattn_kernels.structure import Structure, View

__all__ = ["backward", "forward"]


def forward(structure: Structure, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """See the API. Returns output, log-sum-exp and, where it is wanted, the product."""
    q, v = inputs.q, inputs.v
    view = structure.by_target
    out = v.new_empty((view.num_owners, *v.shape[1:]))
    lse = q.new_empty((view.num_owners, inputs.heads), dtype=inputs.dtype)
    product = inputs.new_product(view.num_edges)
    values = v.to(inputs.dtype).contiguous()
    for owners, edges, chunk in _chunks(view, inputs):
        terms = _Terms(inputs, chunk, edges, q[owners].index_select(0, chunk.owner), inputs.k)
        if product is not None:
            _segment.put(product, chunk.edge_id, edges, terms.product())
        weights, lse[owners] = normalize_runs(terms.scores, chunk)
        if inputs.dropout_p:
            weights *= _dropout(inputs, chunk, edges)
        out[owners] = _segment.weighted_sum(weights, values, chunk)
    return out, lse, product


def backward(
    structure: Structure,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    grad_product: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, edge_bias, edge_gate, edge_rows and att (``None`` for an absent one).

    With p the weights, m the dropout factors and y the output: dv_s = sum p m dy_t; ds = p (m v_s . dy_t - delta_t),
    delta = y . dy - dlse; and the product rule from ds to q, k, the gate and att.
    """
    q, k, v, edge_bias, edge_gate, edge_rows, att = inputs.differentiable()
    assert q is not None and k is not None and v is not None and edge_rows is None
    view, dtype = structure.by_target, inputs.dtype
    slopes = grad_out.to(dtype).contiguous()
    delta = (out.to(dtype) * slopes).sum(-1)
    if grad_lse is not None:
        delta -= grad_lse
    # A target all of whose scores are -inf has no weights: any finite number in place of its lse keeps exp at 0.
    finite_lse = lse.masked_fill(lse == float("-inf"), 0.0)

    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_bias, grad_gate = contiguous_like(edge_bias), contiguous_like(edge_gate)
    grad_att = q.new_zeros(() if att is None else att.shape, dtype=dtype)
    # Weight and slope of each edge, from the row pass to the column pass, in the order of the row pass.
    carried = q.new_empty((view.num_edges, 2, inputs.heads), dtype=dtype)

    for owners, edges, chunk in _chunks(view, inputs):
        terms = _Terms(inputs, chunk, edges, q[owners].index_select(0, chunk.owner), k)
        weights = terms.scores.sub_(finite_lse[owners].index_select(0, chunk.owner)).exp_()
        slope = v.index_select(0, chunk.index).to(dtype)
        slope = slope.mul_(slopes[owners].index_select(0, chunk.owner)).sum(-1)
        kept = weights
        if inputs.dropout_p:
            factor = _dropout(inputs, chunk, edges)
            slope, kept = slope * factor, weights * factor
        slope = slope.sub_(delta[owners].index_select(0, chunk.owner)).mul_(weights)
        if terms.inside is not None:
            slope *= terms.inside
        if grad_bias is not None:
            _segment.put(grad_bias, chunk.edge_id, edges, slope)
        carried[edges, 0], carried[edges, 1] = kept, slope
        grad_terms = _grad_terms(inputs, chunk, edges, slope, grad_product)
        grad_q[owners] = terms.sum_for_query(grad_terms)
        if grad_gate is not None:
            _segment.put(grad_gate, chunk.edge_id, edges, terms.grad_gate(grad_terms))
        if att is not None:
            grad_att += (terms.activated() * slope.unsqueeze(-1)).sum(0)

    place = _place_in_row_pass(structure)
    for owners, edges, chunk in _chunks(structure.by_source, inputs):
        weights, slope = _segment.take(carried, None if place is None else place[edges], edges).unbind(1)
        grad_terms = _grad_terms(inputs, chunk, edges, slope, grad_product)
        # Seen from the sources, q and k exchange their parts.
        terms = _Terms(inputs, chunk, edges, k[owners].index_select(0, chunk.owner), q, scored=False)
        grad_k[owners] = terms.sum_for_query(grad_terms)
        grad_v[owners] = _segment.weighted_sum(weights, slopes, chunk)
    return grad_q, grad_k, grad_v, grad_bias, grad_gate, None, None if att is None else grad_att.to(att.dtype)


class _Terms:
    """What the score of each edge of a chunk is the sum of over channels, and its derivatives.

    Args:
        inputs: Of the call.
        chunk: The edges.
        edges: Where they stand in the view.
        mine: ``[e, H, D]``, the row of each edge's owner.
        others: ``[M, H, D]``, the rows of the other end.
        scored: Compute scores; otherwise derivatives only.
    """

    def __init__(
        self, inputs: Inputs, chunk: View, edges: slice, mine: Tensor, others: Tensor, *, scored: bool = True
    ) -> None:
        self.inputs, self.chunk = inputs, chunk
        self.gate = None if inputs.edge_gate is None else _segment.take(inputs.edge_gate, chunk.edge_id, edges)
        self.others = others
        self.scores = self.total = mine.new_empty(0)
        if inputs.additive:
            self.total = mine.to(inputs.dtype).add_(others.index_select(0, chunk.index))
            if self.gate is not None:
                self.total += self.gate
        elif scored:
            self.total = mine.to(inputs.dtype).mul_(others.index_select(0, chunk.index))
        if scored:
            self._score(edges)

    def _score(self, edges: slice) -> None:
        inputs = self.inputs
        if not inputs.additive:
            scores = (self.total if self.gate is None else self.total * self.gate).sum(-1).mul_(inputs.scale)
        else:
            activated = self.activated()
            scores = (activated if inputs.att is None else activated.mul_(inputs.att)).sum(-1)
        if inputs.edge_bias is not None:
            scores += _segment.take(inputs.edge_bias, self.chunk.edge_id, edges)
        self.inside: Tensor | None = None
        if inputs.clamp is not None:
            self.inside = scores.abs() <= inputs.clamp
            scores = scores.clamp_(-inputs.clamp, inputs.clamp)
        self.scores = scores

    def product(self) -> Tensor:
        """scale q k g of each channel."""
        product = self.total * self.inputs.scale
        return product if self.gate is None else product.mul_(self.gate)

    def activated(self) -> Tensor:
        """scale LeakyReLU(q + k + g) of each channel."""
        assert self.inputs.negative_slope is not None
        return torch.nn.functional.leaky_relu(self.total, self.inputs.negative_slope).mul_(self.inputs.scale)

    def sum_for_query(self, grad_terms: Tensor) -> Tensor:
        """The gradient of the owners' rows, from that of the terms: ``[e, H]`` the same for all channels, or each its
        own ``[e, H, D]``."""
        if self.inputs.additive:
            return _segment.segment_sum(self.grad_total(grad_terms), self.chunk.ptr)
        if self.gate is not None:
            grad_terms = self.gate * (grad_terms if grad_terms.dim() == 3 else grad_terms.unsqueeze(-1))
        return _segment.weighted_sum(grad_terms, self.others.to(self.inputs.dtype).contiguous(), self.chunk)

    def grad_total(self, grad_terms: Tensor) -> Tensor:
        """The gradient of q + k + g ``[e, H, D]``."""
        slope = self.inputs.negative_slope
        assert slope is not None
        steep = torch.ones_like(self.total).masked_fill_(self.total <= 0, slope)
        if self.inputs.att is not None:
            steep *= self.inputs.att
        return steep.mul_(grad_terms.unsqueeze(-1))

    def grad_gate(self, grad_terms: Tensor) -> Tensor:
        """The gradient of the gate ``[e, H, D]``."""
        if self.inputs.additive:
            return self.grad_total(grad_terms)
        return self.total * (grad_terms if grad_terms.dim() == 3 else grad_terms.unsqueeze(-1))


def _grad_terms(inputs: Inputs, chunk: View, edges: slice, slope: Tensor, grad_product: Tensor | None) -> Tensor:
    """Gradient of the terms before the scale: ``[e, H]``, or ``[e, H, D]`` where the product has a gradient, too."""
    if grad_product is None:
        return slope * inputs.scale
    return (_segment.take(grad_product, chunk.edge_id, edges) + slope.unsqueeze(-1)) * inputs.scale


def _chunks(view: View, inputs: Inputs):  # type: ignore[no-untyped-def]
    return _segment.chunks(view, max(inputs.q[:1].numel(), inputs.v[:1].numel()))


def _place_in_row_pass(structure: Structure) -> Tensor | None:
    """Where the target's view holds each edge of the source's view; ``None``: at the same place."""
    view, edge_id = structure.by_target, structure.by_source.edge_id
    if view.edge_id is None:
        return edge_id
    place = _segment.in_callers_order(torch.arange(view.num_edges, device=view.ptr.device), view)
    return place if edge_id is None else place.index_select(0, edge_id)


def _dropout(inputs: Inputs, chunk: View, edges: slice) -> Tensor:
    assert inputs.dropout_seed is not None
    ids = chunk.edge_id
    if ids is None:
        ids = torch.arange(edges.start, edges.stop, device=inputs.q.device)
    return dropout_scale(inputs.dropout_seed, ids, inputs.heads, inputs.dropout_p, inputs.dtype)
