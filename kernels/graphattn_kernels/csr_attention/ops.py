"""Schemas, fakes and the gradient: forward saves the output and the log-sum-exp, backward computes weights again."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.csr_attention.impl import gather
from graphattn_kernels.errors import BackendError
from graphattn_kernels.structure import NUM_ARGS, SCHEMA, unflat

__all__ = ["csr_attention"]

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? edge_bias, Tensor? edge_gate"
_OPTIONS = "float scale, float? clamp, float dropout_p, Tensor? dropout_seed"
_BACKEND = "str backend"
_SAVED = "Tensor out, Tensor lse, Tensor grad_out, Tensor grad_lse"


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    q, _, v = args[NUM_ARGS : NUM_ARGS + 3]
    targets, heads = q.shape[:2]
    out = v.new_empty((targets, heads, v.shape[2]))
    return out, q.new_empty((targets, heads), dtype=accumulate_dtype(q.dtype))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, clamp, dropout_p, seed, backend = inputs
    ctx.save_for_backward(*tensors, *output, seed)
    ctx.options = scale, clamp, dropout_p
    ctx.backend = backend


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    *tensors, out, lse, seed = ctx.saved_tensors
    grads = _csr_attention_backward(*tensors, *ctx.options, seed, out, lse, grad_out, grad_lse, ctx.backend)
    needed = ctx.needs_input_grad[NUM_ARGS : NUM_ARGS + 5]
    return (
        *(None,) * NUM_ARGS,
        *(g if need else None for g, need in zip(grads, needed, strict=True)),
        *(None,) * 5,
    )


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    q, k, v, bias, gate = args[NUM_ARGS : NUM_ARGS + 5]
    return tuple(
        q.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (q, k, v, bias, gate)
    )


def _implementation(backend: str) -> ModuleType:
    if backend == "triton":  # imported on first use: it compiles for the machine it runs on
        from graphattn_kernels.csr_attention.impl import triton

        return triton
    if backend == "numba":  # on first use, too: importing it takes a second
        try:
            from graphattn_kernels.csr_attention.impl import numba
        except ImportError as error:  # installed, but for another NumPy, say
            raise BackendError(f"numba cannot be imported ({error}); repair it, or use backend='gather'") from error
        return numba
    return gather


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    return _implementation(args[-1]).forward(unflat(args), *args[NUM_ARGS:-1])


def _backward_implementation(*args: Any) -> tuple[Tensor, ...]:
    return _implementation(args[-1]).backward(unflat(args), *args[NUM_ARGS:-1])


csr_attention = register(
    f"csr_attention({SCHEMA}, {_INPUTS}, {_OPTIONS}, {_BACKEND}) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
)
_csr_attention_backward = register(
    f"csr_attention_backward({SCHEMA}, {_INPUTS}, {_OPTIONS}, {_SAVED}, {_BACKEND})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_implementation,
    _backward_fake,
)
