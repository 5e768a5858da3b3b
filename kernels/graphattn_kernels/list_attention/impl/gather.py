"""Gathered keys: the rows of k and v that each list names, side by side, and dense attention over each block.

Its gradient is PyTorch's, so it has any order of derivative that PyTorch's operators have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.list_attention.impl.reference import masked_softmax
from graphattn_kernels.lists import SourceLists

__all__ = ["dense", "list_attention", "why_not_dense"]

# Numbers in a buffer of gathered rows, or of scores: beyond these, some blocks after others.
_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}

# PyTorch's gradient on CUDA has a program for so many keys, and this many programs fill a large GPU; with fewer queries
# than this a program is hardly worth its start.
_KEYS, _PROGRAMS, _QUERIES = 128, {"cpu": 1, "cuda": 128}, 512

# In turn, whichever takes the tensors first.
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def why_not_dense(lists: SourceLists, clamp: float | None) -> str | None:
    """Why :func:`dense` cannot serve this; ``None``: it can."""
    if "h" in lists.leading:
        return "each head has lists of its own"
    if lists.causal or lists.own:
        return "targets of a block read different sources of its list"
    if lists.length is not None or not lists.disjoint:
        return "lists have sources in common, or are not all in use"
    if lists.blocks * lists.block != lists.num_targets:
        return "the last block is not full"
    if lists.target is not None and lists.target.shape[0] != 1:
        return "each copy has its targets in another order"
    return None if clamp is None else "PyTorch's attention has no clamp"


def dense(lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's dense attention in each block, after one gather of k and v; no log-sum-exp.

    Every row of k and v is read for one list at most, so the gradients of gathered rows are written, not added.
    """
    copies, blocks, room = lists.index.shape
    batch, targets, heads = q.shape[:3]
    where = lists.index.reshape(copies, blocks * room)
    if copies > 1:
        where = where + torch.arange(copies, device=q.device).unsqueeze(1) * lists.num_sources
    whole = blocks * room == lists.num_sources  # every source is read
    order = lists.target
    if order is not None:
        order = order.view(-1)
        (q,) = _Rows.apply(order, True, q)
    k, v = _gathered(where, whole, k, v)
    each = batch * blocks
    if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
        parts = _parts(_PROGRAMS.get(q.device.type, 1), each * heads, lists.block, room)
        if parts > 1:
            k, v = (x.reshape(each, room, heads, x.shape[-1]).repeat_interleave(parts, 0) for x in (k, v))
            each *= parts
    rows = zip((q, k, v), (batch * targets // max(each, 1), room, room), strict=True)
    q, k, v = (x.reshape(each, n, heads, x.shape[-1]).transpose(1, 2) for x, n in rows)
    if q.is_cuda:
        with sdpa_kernel(_ORDER, set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    out = out.transpose(1, 2).reshape(batch, targets, heads, v.shape[-1])
    return out if order is None else _Rows.apply(_inverse(order), True, out)[0]


def _parts(most: int, entries: int, queries: int, keys: int) -> int:
    """In how many parts the queries of a block go through its keys, each with gradients of k and v of its own.

    With few keys, the gradient would leave most of the device idle. Depends on sizes alone, so that results do.
    """
    programs, parts = entries * -(-keys // _KEYS), 1
    while 2 * parts * programs <= most and queries % (2 * parts) == 0 and queries // (2 * parts) >= _QUERIES:
        parts *= 2
    return parts


def list_attention(
    lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """See the API, but for ``own``, which is not heeded; some blocks after others where there are many."""
    copies, blocks, room = lists.index.shape
    batch, targets, heads, width = q.shape
    # [batch, heads] of every copy of the graph
    split = (batch if "b" in lists.leading else 1, heads if "h" in lists.leading else 1)
    index = lists.index.long().view(*split, blocks, room)
    used = lists.used()
    if used is not None:
        index = index.masked_fill(~used.view_as(index), 0)
        used = used.view_as(index)
    place = lists.places()
    place = (place.view(*split, blocks, -1) if place.shape[0] > 1 else place.unsqueeze(0)).expand(
        *split, blocks, lists.block
    )
    rows = [x.transpose(1, 2) for x in (q, k, v)]  # [B, H, N, D]
    each = batch * heads * (lists.block * room + (lists.block + 2 * room) * max(width, v.shape[-1]))
    step = max(1, _ELEMENTS.get(q.device.type, 1 << 28) // max(each, 1))
    dtype = accumulate_dtype(q.dtype)
    outs, lses = [], []
    for first in range(0, blocks, step):
        some = slice(first, first + step)
        t, s = place[:, :, some], index[:, :, some]
        q_rows, k_rows, v_rows = (
            _take(x, i, batch, heads).to(dtype) for x, i in zip(rows, (t.clamp(min=0), s, s), strict=True)
        )
        mask = None if used is None else used[:, :, some].unsqueeze(-2)
        if lists.causal or lists.own:
            t, s = t.unsqueeze(-1), s.unsqueeze(-2)
            read = s != t if not lists.causal else s < t if lists.own else s <= t
            mask = read if mask is None else mask & read
        weights, lse = masked_softmax(q_rows @ k_rows.mT * scale, mask, clamp)
        outs.append(weights @ v_rows)
        lses.append(lse)
    shape = (batch, heads, blocks * lists.block)
    out = torch.cat(outs, 2).reshape(*shape, v.shape[-1]) if outs else v.new_zeros((*shape, v.shape[-1]), dtype=dtype)
    lse = torch.cat(lses, 2).reshape(shape) if lses else out.new_zeros(shape)
    out, lse = _to_targets(lists, place, out, lse, targets)
    return out.transpose(1, 2).to(v.dtype), lse.transpose(1, 2)


def _take(x: Tensor, index: Tensor, batch: int, heads: int) -> Tensor:
    """Rows ``[B, H, blocks, n, D]`` of ``x [B, H, N, D]``.

    By indexing, whose gradient on CUDA sorts and adds in order where that of a gather adds atomically.
    """
    b = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    h = torch.arange(heads, device=x.device).view(1, -1, 1, 1)
    return x[b, h, index]


def _to_targets(lists: SourceLists, place: Tensor, out: Tensor, lse: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """From places to targets; 0 and -inf for those who stand nowhere."""
    if lists.target is None:
        return out[:, :, :targets], lse[:, :, :targets]
    batch, heads = out.shape[:2]
    place = place.flatten(2).expand(batch, heads, -1)
    at = torch.where(place < 0, targets, place)
    where = at.new_full((batch, heads, targets + 1), place.shape[2])
    where.scatter_(2, at, torch.arange(place.shape[2], device=at.device).expand_as(at))
    where = where[:, :, :targets]
    out = F.pad(out, (0, 0, 0, 1))
    lse = F.pad(lse, (0, 1), value=float("-inf"))
    return out.gather(2, where.unsqueeze(-1).expand(-1, -1, -1, out.shape[-1])), lse.gather(2, where)


def _gathered(where: Tensor, whole: bool, *xs: Tensor) -> tuple[Tensor, ...]:
    """Rows ``[B, n, H, D]`` that stand at ``where [1 or B, n]`` of each ``x [B, N, H, D]``."""
    if where.shape[0] == 1:
        return _Rows.apply(where[0], whole, *xs)
    rows = _Rows.apply(where.flatten(), whole, *(x.flatten(0, 1).unsqueeze(0) for x in xs))
    return tuple(row.view(x.shape[0], -1, *x.shape[2:]) for row, x in zip(rows, xs, strict=True))


def _inverse(order: Tensor) -> Tensor:
    place = torch.arange(order.shape[0], device=order.device)
    return torch.empty_like(place).scatter_(0, order.long(), place)


class _Rows(torch.autograd.Function):
    """Different rows of some ``x [B, N, ...]`` along N: nothing is added in the gradient, so it needs no atomics."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, whole: bool, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(index)
        ctx.size, ctx.whole = xs[0].shape[1], whole
        return tuple(x.index_select(1, index) for x in xs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        index = index.long()
        spread = []
        for grad in grads:
            shape = (grad.shape[0], ctx.size, *grad.shape[2:])
            full = grad.new_empty(shape) if ctx.whole else grad.new_zeros(shape)
            spread.append(full.index_copy_(1, index, grad))
        return None, None, *spread
