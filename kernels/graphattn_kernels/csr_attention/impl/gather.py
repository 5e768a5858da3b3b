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
    for owners, edges, chunk in _segment.chunks(view, max(q[:1].numel(), v[:1].numel())):
        ids = _edge_ids(view, edges)
        product = _product(q[owners], k, edge_gate, chunk, ids, dtype)
        scores, _ = _scores(product, edge_bias, ids, scale, clamp)
        weights, lse[owners] = normalize_runs(scores, chunk)
        if dropout_p:
            weights *= _dropout(dropout_seed, view, edges, weights, dropout_p)
        rows = v.index_select(0, chunk.index).to(dtype) * weights.unsqueeze(-1)
        out[owners] = _segment.segment_sum(rows, chunk.ptr, chunk.owner)
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
    grad_out = grad_out.contiguous()
    delta = (out.to(dtype) * grad_out).sum(-1) - grad_lse
    # A target all of whose scores are -inf has no weights: any finite number in place of its lse keeps exp at 0.
    finite_lse = lse.masked_fill(lse == float("-inf"), 0.0)

    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_bias = (
        q.new_empty(0) if edge_bias is None else torch.empty_like(edge_bias, memory_format=torch.contiguous_format)
    )
    grad_gate = (
        q.new_empty(0) if edge_gate is None else torch.empty_like(edge_gate, memory_format=torch.contiguous_format)
    )
    # In the caller's edge order, which both passes can index.
    weight_of_edge = q.new_empty((view.num_edges, heads), dtype=dtype)
    slope_of_edge = torch.empty_like(weight_of_edge)

    for owners, edges, chunk in _segment.chunks(view, max(q[:1].numel(), v[:1].numel())):
        ids = _edge_ids(view, edges)
        product = _product(q[owners], k, edge_gate, chunk, ids, dtype)
        scores, inside = _scores(product, edge_bias, ids, scale, clamp)
        weights = scores.sub_(finite_lse[owners].index_select(0, chunk.owner)).exp_()
        slope = v.index_select(0, chunk.index).to(dtype)
        slope = slope.mul_(grad_out[owners].index_select(0, chunk.owner)).sum(-1)
        kept = weights
        if dropout_p:
            factor = _dropout(dropout_seed, view, edges, weights, dropout_p)
            slope, kept = slope * factor, weights * factor
        slope = slope.sub_(delta[owners].index_select(0, chunk.owner)).mul_(weights)
        if inside is not None:
            slope *= inside
        if edge_bias is not None:
            _store(grad_bias, ids, edges, slope)
        slope = slope * scale
        if edge_gate is not None:
            plain = _product(q[owners], k, None, chunk, ids, dtype)
            _store(grad_gate, ids, edges, plain.mul_(slope.unsqueeze(-1)))
        _store(weight_of_edge, ids, edges, kept)
        _store(slope_of_edge, ids, edges, slope)
        rows = k.index_select(0, chunk.index).to(dtype).mul_(slope.unsqueeze(-1))
        if edge_gate is not None:
            rows *= _take(edge_gate, ids, edges)
        grad_q[owners] = _segment.segment_sum(rows, chunk.ptr, chunk.owner)

    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    view = structure.by_source
    for owners, edges, chunk in _segment.chunks(view, max(q[:1].numel(), v[:1].numel())):
        ids = _edge_ids(view, edges)
        rows = q.index_select(0, chunk.index).to(dtype).mul_(_take(slope_of_edge, ids, edges).unsqueeze(-1))
        if edge_gate is not None:
            rows *= _take(edge_gate, ids, edges)
        grad_k[owners] = _segment.segment_sum(rows, chunk.ptr, chunk.owner)
        rows = grad_out.index_select(0, chunk.index).to(dtype).mul_(_take(weight_of_edge, ids, edges).unsqueeze(-1))
        grad_v[owners] = _segment.segment_sum(rows, chunk.ptr, chunk.owner)
    return grad_q, grad_k, grad_v, grad_bias, grad_gate


def _edge_ids(view: View, edges: slice) -> Tensor | None:
    return None if view.edge_id is None else view.edge_id[edges]


def _take(rows: Tensor, ids: Tensor | None, edges: slice) -> Tensor:
    return rows[edges] if ids is None else rows.index_select(0, ids)


def _store(out: Tensor, ids: Tensor | None, edges: slice, rows: Tensor) -> None:
    if ids is None:
        out[edges] = rows
    else:
        out.index_copy_(0, ids.long(), rows.to(out.dtype))


def _product(q: Tensor, k: Tensor, gate: Tensor | None, chunk: View, ids: Tensor | None, dtype: torch.dtype) -> Tensor:
    """q * k (* gate) of each edge, ``[e, H, D]``; ``q`` holds the rows of the chunk's owners only."""
    product = q.index_select(0, chunk.owner).to(dtype).mul_(k.index_select(0, chunk.index))
    if gate is not None:
        product *= gate.index_select(0, ids) if ids is not None else gate
    return product


def _scores(
    product: Tensor, bias: Tensor | None, ids: Tensor | None, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor | None]:
    """Scores ``[e, H]`` and, where they are clamped, which of them a gradient passes through."""
    scores = product.sum(-1).mul_(scale)
    if bias is not None:
        scores += bias if ids is None else bias.index_select(0, ids)
    if clamp is None:
        return scores, None
    inside = scores.abs() <= clamp
    return scores.clamp_(-clamp, clamp), inside


def _dropout(seed: Tensor | None, view: View, edges: slice, like: Tensor, p: float) -> Tensor:
    assert seed is not None
    ids = torch.arange(edges.start, edges.stop, device=like.device) if view.edge_id is None else view.edge_id[edges]
    return dropout_scale(seed, ids, like.shape[1], p, like.dtype)
