"""Schemas, fakes and the gradient: forward saves the output and the log-sum-exp, backward computes weights again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels.lists import NUM_ARGS, SCHEMA, unflat

__all__ = ["list_attention"]

_INPUTS = "Tensor q, Tensor k, Tensor v, float scale, float? clamp"
_SAVED = "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse"


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    from graphattn_kernels.list_attention.impl import triton  # on first use: it compiles for the machine it runs on

    return triton.forward(unflat(args), *args[NUM_ARGS:])


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    q, _, v = args[NUM_ARGS : NUM_ARGS + 3]
    return v.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, scale, clamp = inputs[NUM_ARGS:]
    ctx.lists, ctx.options = inputs[:NUM_ARGS], (scale, clamp)  # nobody writes to the lists of a graph
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    if grad_out is None:
        grad_out = out.new_zeros(()).expand_as(out)
    grads = _list_attention_backward(*ctx.lists, q, k, v, *ctx.options, out, lse, grad_out, grad_lse)
    return tuple([g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)])


def _backward_implementation(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from graphattn_kernels.list_attention.impl import triton

    return triton.backward(unflat(args), *args[NUM_ARGS:])


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs = args[NUM_ARGS : NUM_ARGS + 3]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


list_attention = register(
    f"list_attention({SCHEMA}, {_INPUTS}) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
    slice(NUM_ARGS, NUM_ARGS + 3),
)
_list_attention_backward = register(
    f"list_attention_backward({SCHEMA}, {_INPUTS}, {_SAVED}) -> (Tensor, Tensor, Tensor)",
    _backward_implementation,
    _backward_fake,
)
