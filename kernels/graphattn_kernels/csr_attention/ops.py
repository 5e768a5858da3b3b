"""Schemas, fakes and the gradient: forward saves the output and the log-sum-exp, backward computes weights again."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels.csr_attention.impl import gather
from graphattn_kernels.csr_attention.inputs import NUM_GRADIENTS, SCHEMA, Inputs, contiguous_like
from graphattn_kernels.errors import BackendError
from graphattn_kernels.structure import NUM_ARGS, unflat
from graphattn_kernels.structure import SCHEMA as STRUCTURE

__all__ = ["csr_attention"]

_NUM_INPUTS = len(Inputs._fields)
_TENSORS = 8  # the inputs in front are tensors, the rest are options
_SAVED = "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor? grad_product"


def _inputs(args: tuple[Any, ...]) -> Inputs:
    return Inputs(*args[NUM_ARGS : NUM_ARGS + _NUM_INPUTS])


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _inputs(args)
    targets, heads = inputs.q.shape[:2]
    out = inputs.v.new_empty((targets, heads, inputs.v.shape[2]))
    lse = inputs.q.new_empty((targets, heads), dtype=inputs.dtype)
    product = inputs.new_product(args[1].shape[0])
    return out, lse, inputs.q.new_empty(0) if product is None else product


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    tensors = NUM_ARGS + _TENSORS
    # The graph has no gradient and nobody writes to it: kept as it is, without a saved copy of each array.
    ctx.structure = inputs[:NUM_ARGS]
    ctx.save_for_backward(*inputs[NUM_ARGS:tensors], *output[:2])
    ctx.options = inputs[tensors:]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, grad_product: Tensor | None
) -> tuple[Any, ...]:
    *tensors, out, lse = ctx.saved_tensors
    *options, backend = ctx.options
    if not options[-1]:  # the product was not wanted: an empty tensor stands in its place
        grad_product = None
    if grad_out is None:
        grad_out = out.new_zeros(()).expand_as(out)
    saved = (out, lse, grad_out, grad_lse, grad_product)
    grads = _csr_attention_backward(*ctx.structure, *tensors, *options, *saved, backend)
    return tuple([g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)])


def _backward_fake(*args: Any) -> tuple[Any, ...]:
    inputs = _inputs(args)
    return tuple(inputs.q.new_empty(0) if x is None else contiguous_like(x) for x in inputs.differentiable())


@cache  # an import statement takes a microsecond each time
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


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    inputs = _inputs(args)
    assert inputs.edge_rows is None or args[-1] != "gather", "the API spares it edge rows"
    return _implementation(args[-1]).forward(unflat(args), inputs)


def _backward_implementation(*args: Any) -> tuple[Tensor | None, ...]:
    return _implementation(args[-1]).backward(unflat(args), _inputs(args), *args[NUM_ARGS + _NUM_INPUTS : -1])


csr_attention = register(
    f"csr_attention({STRUCTURE}, {SCHEMA}, str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
    slice(NUM_ARGS, NUM_ARGS + NUM_GRADIENTS),
)
_csr_attention_backward = register(
    f"csr_attention_backward({STRUCTURE}, {SCHEMA}, {_SAVED}, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_implementation,
    _backward_fake,
)
