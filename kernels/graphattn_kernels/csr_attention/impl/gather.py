"""Gather and run-wise reductions in chunks of owners; the gradient is a row pass and a column pass.

Memory: one chunk of ``[edges, heads, channels]`` buffers, and in the backward pass two numbers for each edge
and head, which carry the weights from the row pass to the column pass. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels import _segment
from graphattn_kernels._random import dropout_scale
from graphattn_kernels.segment_softmax.impl.gather import normalize_runs
from graphattn_kernels.structure import Structure, View

__all__ = ["backward", "forward"]


def forward(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    scale: float,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See the API. Returns output and log-sum-exp."""
    view = structure.by_target
    dtype = _segment.accumulate_dtype(q.dtype)
    out = v.new_empty((view.num_owners, *v.shape[1:]))
    lse = q.new_empty((view.num_owners, q.shape[1]), dtype=dtype)
    values = v.to(dtype).contiguous()
    for owners, edges, chunk in _segment.chunks(view, max(q[:1].numel(), v[:1].numel())):
        product = _product(q[owners], k, chunk, dtype)
        scores, _ = _scores(product, edge_bias, edge_gate, chunk, edges, scale, clamp)
        weights, lse[owners] = normalize_runs(scores, chunk)
        if dropout_p:
            weights *= _dropout(dropout_seed, chunk, edges, weights, dropout_p)
        out[owners] = _segment.weighted_sum(weights, values, chunk)
    return out, lse


def backward(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    scale: float,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, edge_bias and edge_gate (empty for an absent one).

    With p the weights, m the dropout factors and y the output: dv_s = sum p m dy_t; ds = p (m v_s . dy_t - delta_t),
    delta = y . dy - dlse; and the product rule from ds to q, k and the gate.
    """
    view = structure.by_target
    heads, dtype = q.shape[1], _segment.accumulate_dtype(q.dtype)
    q_rows, k_rows, slopes = (x.to(dtype).contiguous() for x in (q, k, grad_out))
    delta = (out.to(dtype) * slopes).sum(-1) - grad_lse
    # A target all of whose scores are -inf has no weights: any finite number in place of its lse keeps exp at 0.
    finite_lse = lse.masked_fill(lse == float("-inf"), 0.0)

    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_bias = (
        q.new_empty(0) if edge_bias is None else torch.empty_like(edge_bias, memory_format=torch.contiguous_format)
    )
    grad_gate = (
        q.new_empty(0) if edge_gate is None else torch.empty_like(edge_gate, memory_format=torch.contiguous_format)
    )
    # Weight and slope of each edge, from the row pass to the column pass, in the order of the row pass.
    carried = q.new_empty((view.num_edges, 2, heads), dtype=dtype)

    for owners, edges, chunk in _segment.chunks(view, max(q[:1].numel(), v[:1].numel())):
        product = _product(q[owners], k, chunk, dtype)
        scores, inside = _scores(product, edge_bias, edge_gate, chunk, edges, scale, clamp)
        weights = scores.sub_(finite_lse[owners].index_select(0, chunk.owner)).exp_()
        slope = v.index_select(0, chunk.index).to(dtype)
        slope = slope.mul_(slopes[owners].index_select(0, chunk.owner)).sum(-1)
        kept = weights
        if dropout_p:
            factor = _dropout(dropout_seed, chunk, edges, weights, dropout_p)
            slope, kept = slope * factor, weights * factor
        slope = slope.sub_(delta[owners].index_select(0, chunk.owner)).mul_(weights)
        if inside is not None:
            slope *= inside
        if edge_bias is not None:
            _segment.put(grad_bias, chunk.edge_id, edges, slope)
        slope = slope * scale
        if edge_gate is not None:
            _segment.put(grad_gate, chunk.edge_id, edges, product.mul_(slope.unsqueeze(-1)))
        carried[edges, 0], carried[edges, 1] = kept, slope
        grad_q[owners] = _segment.weighted_sum(_gated(slope, edge_gate, chunk, edges), k_rows, chunk)

    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    place = _place_in_row_pass(structure)
    for owners, edges, chunk in _segment.chunks(structure.by_source, max(q[:1].numel(), v[:1].numel())):
        weights, slope = _segment.take(carried, None if place is None else place[edges], edges).unbind(1)
        grad_k[owners] = _segment.weighted_sum(_gated(slope, edge_gate, chunk, edges), q_rows, chunk)
        grad_v[owners] = _segment.weighted_sum(weights, slopes, chunk)
    return grad_q, grad_k, grad_v, grad_bias, grad_gate


def _place_in_row_pass(structure: Structure) -> Tensor | None:
    """Where the target's view holds each edge of the source's view; ``None``: at the same place."""
    view, edge_id = structure.by_target, structure.by_source.edge_id
    if view.edge_id is None:
        return edge_id
    place = _segment.in_callers_order(torch.arange(view.num_edges, device=view.ptr.device), view)
    return place if edge_id is None else place.index_select(0, edge_id)


def _product(q: Tensor, k: Tensor, chunk: View, dtype: torch.dtype) -> Tensor:
    """q * k of each edge, ``[e, H, D]``; ``q`` holds the rows of the chunk's owners only."""
    return q.index_select(0, chunk.owner).to(dtype).mul_(k.index_select(0, chunk.index))


def _scores(
    product: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    chunk: View,
    edges: slice,
    scale: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor | None]:
    """Scores ``[e, H]`` and, where they are clamped, which of them a gradient passes through."""
    if gate is not None:
        product = product * _segment.take(gate, chunk.edge_id, edges)
    scores = product.sum(-1).mul_(scale)
    if bias is not None:
        scores += _segment.take(bias, chunk.edge_id, edges)
    if clamp is None:
        return scores, None
    inside = scores.abs() <= clamp
    return scores.clamp_(-clamp, clamp), inside


def _gated(slope: Tensor, gate: Tensor | None, chunk: View, edges: slice) -> Tensor:
    """The slope of each edge's score times its gate, which the product rule leaves at q and at k."""
    return slope if gate is None else _segment.take(gate, chunk.edge_id, edges) * slope.unsqueeze(-1)


def _dropout(seed: Tensor | None, chunk: View, edges: slice, like: Tensor, p: float) -> Tensor:
    assert seed is not None
    ids = chunk.edge_id
    if ids is None:
        ids = torch.arange(edges.start, edges.stop, device=like.device)
    return dropout_scale(seed, ids, like.shape[1], p, like.dtype)
