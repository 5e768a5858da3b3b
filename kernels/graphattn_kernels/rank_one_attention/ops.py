"""Schemas, fakes and the gradient: saved are the inputs, and the sums over all tokens."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import in_full, register
from graphattn_kernels._members import MEMBERS_SCHEMA, Members
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.rank_one_attention.impl import gather

__all__ = ["rank_one_attention", "spread_rows"]

_INPUTS = f"Tensor q, Tensor k, Tensor v, {MEMBERS_SCHEMA}, float eps_q, float eps_k, float factor"


@cache
def _implementation(backend: str) -> ModuleType:
    if backend == "triton":  # imported on first use: it compiles for the machine it runs on
        from graphattn_kernels.rank_one_attention.impl import triton

        return triton
    return gather


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    *options, spread, backend = args[7:]
    with in_full(args[0]):
        out, sums = _implementation(backend).forward(*args[:3], Members(*args[3:7]), *options)
    return spread_rows(out, args[0]) if spread else out, sums


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    q, _, v, *members = args[:7]
    count, heads, dtype = Members(*members).count(q), q.shape[2], accumulate_dtype(q.dtype)
    out = v.new_empty((count, heads, v.shape[3]))
    sums = q.new_empty((count, heads, q.shape[3] + v.shape[3] + 2), dtype=dtype)
    return spread_rows(out, q) if args[-2] else out, sums


def spread_rows(out: Tensor, q: Tensor) -> Tensor:
    """The row of its member at every target, without a copy."""
    return out.unsqueeze(1).expand(-1, q.shape[1], -1, -1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.options = inputs[7:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return None, None, None
    *inputs, sums = ctx.saved_tensors
    *options, spread, backend = ctx.options
    if spread:
        grad_out = grad_out.sum(1, dtype=sums.dtype)
    grads = _rank_one_attention_backward(*inputs, *options, sums, grad_out, backend)
    return tuple([g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)])


def _backward_implementation(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with in_full(args[0]):
        return _implementation(args[-1]).backward(*args[:3], Members(*args[3:7]), *args[7:-1])


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in args[:3])


_operator = register(
    f"rank_one_attention({_INPUTS}, bool spread, str backend) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
    slice(0, 3),
)
_rank_one_attention_backward = register(
    f"rank_one_attention_backward({_INPUTS}, Tensor sums, Tensor grad_out, str backend) -> (Tensor, Tensor, Tensor)",
    _backward_implementation,
    _backward_fake,
)


def rank_one_attention(*args: Any) -> Tensor:
    """The mixture of each member and head, or of each target; the sums stay with autograd."""
    return _operator(*args)[0]
