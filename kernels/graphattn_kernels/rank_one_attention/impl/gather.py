"""Plain PyTorch with the gradient in closed form, on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from graphattn_kernels._members import WHOLE, Members, without_padding
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["backward", "forward"]


def forward(
    q: Tensor, k: Tensor, v: Tensor, members: Members, eps_q: float, eps_k: float, factor: float
) -> tuple[Tensor, Tensor]:
    """See the API. Returns the mixture, and the sums ``[members, heads, 1 + D + 1 + D_v]`` that the backward pass
    needs: of lengths, of queries by length, of weights, of values by weight."""
    dtype = accumulate_dtype(q.dtype)
    sums = q.new_empty((members.count(q), q.shape[2], q.shape[3] + v.shape[3] + 2), dtype=dtype)
    for entries, targets, sources, rows in _pieces(q, members):
        x = without_padding(q[:, targets], entries.target_lengths).to(dtype)
        y, z = (without_padding(t[:, sources], entries.source_lengths).to(dtype) for t in (k, v))
        length = torch.linalg.vector_norm(x, dim=-1)
        total, by_length = length.sum(1, keepdim=True).mT, torch.einsum("bth,bthd->bhd", length, x)
        weights = torch.einsum("bhd,bshd->bsh", by_length / (total + eps_q), y).relu_()
        of_weights, by_weight = weights.sum(1, keepdim=True).mT, torch.einsum("bsh,bshd->bhd", weights, z)
        sums[rows] = torch.cat([total, by_length, of_weights, by_weight], -1)
    mixture = sums[..., q.shape[3] + 2 :] / (sums[..., q.shape[3] + 1, None] + eps_k)
    return (mixture * factor).to(v.dtype), sums


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    members: Members,
    eps_q: float,
    eps_k: float,
    factor: float,
    sums: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    dtype, width = sums.dtype, q.shape[3]
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for entries, targets, sources, rows in _pieces(q, members):
        total, by_length, of_weights, by_weight = sums[rows].split([1, width, 1, v.shape[3]], -1)
        y, z = (without_padding(t[:, sources], entries.source_lengths).to(dtype) for t in (k, v))
        mean = by_length / (total + eps_q)
        to_value = grad_out[rows].to(dtype) * factor / (of_weights + eps_k)
        to_sum = -(to_value * by_weight).sum(-1, keepdim=True) / (of_weights + eps_k)
        weights = torch.einsum("bhd,bshd->bsh", mean, y).relu_()
        grad_v[:, sources] = weights.unsqueeze(-1) * to_value.unsqueeze(1)
        to_weight = torch.einsum("bhd,bshd->bsh", to_value, z) + to_sum.mT
        to_weight = to_weight.masked_fill_(weights == 0.0, 0.0)
        grad_k[:, sources] = to_weight.unsqueeze(-1) * mean.unsqueeze(1)
        to_mean = torch.einsum("bsh,bshd->bhd", to_weight, y) / (total + eps_q)
        to_total = -(to_mean * mean).sum(-1, keepdim=True)

        x = without_padding(q[:, targets], entries.target_lengths).to(dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        along = torch.einsum("bhd,bthd->bth", to_mean, x).unsqueeze(-1) + to_total.unsqueeze(1)
        along = along / length.masked_fill(length == 0.0, 1.0)
        grad_q[:, targets] = length * to_mean.unsqueeze(1) + along * x
    return grad_q, grad_k, grad_v


def _pieces(q: Tensor, members: Members) -> Iterator[tuple[Members, slice, slice, slice]]:
    """All batch entries at once, or the members of a ragged batch in turn: their padding, targets, sources, rows."""
    if members.target_ptr is None:
        yield members, slice(None), slice(None), slice(None)
        return
    for g, (targets, sources) in enumerate(members.slices()):
        yield WHOLE, targets, sources, slice(g, g + 1)
