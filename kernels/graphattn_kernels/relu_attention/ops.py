"""Schemas, fakes and the gradient: forward saves the output and the norm, backward computes weights again."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import in_full, register
from graphattn_kernels._members import MEMBERS_SCHEMA, Members
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.relu_attention.impl import gather

__all__ = ["relu_attention"]

_INPUTS = f"Tensor q, Tensor k, Tensor v, {MEMBERS_SCHEMA}, float scale, bool causal, float eps"
_SAVED = "Tensor out, Tensor norm, Tensor grad_out, Tensor? grad_norm"


def _implementation(backend: str) -> ModuleType:
    if backend == "triton":  # imported on first use: it compiles for the machine it runs on
        from graphattn_kernels.relu_attention.impl import triton

        return triton
    return gather


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    with in_full(args[0]):
        return _implementation(args[-1]).forward(*args[:3], Members(*args[3:7]), *args[7:10])


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    q, _, v, *members = args[:7]
    out = v.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty((Members(*members).count(q), q.shape[2]), dtype=accumulate_dtype(q.dtype))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.options = inputs[7:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_norm: Tensor | None) -> tuple[Any, ...]:
    *inputs, out, norm = ctx.saved_tensors
    if grad_out is None:
        grad_out = out.new_zeros(()).expand_as(out)
    *options, backend = ctx.options
    grads = _relu_attention_backward(*inputs, *options, out, norm, grad_out, grad_norm, backend)
    return tuple([g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)])


def _backward_implementation(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with in_full(args[0]):
        return _implementation(args[-1]).backward(*args[:3], Members(*args[3:7]), *args[7:14])


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in args[:3])


relu_attention = register(
    f"relu_attention({_INPUTS}, str backend) -> (Tensor, Tensor)", _forward, _fake, _setup, _backward, slice(0, 3)
)
_relu_attention_backward = register(
    f"relu_attention_backward({_INPUTS}, {_SAVED}, str backend) -> (Tensor, Tensor, Tensor)",
    _backward_implementation,
    _backward_fake,
)
