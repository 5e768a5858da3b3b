"""Schema, fake and gradient. The gradient is an ``sddmm`` and a transposed ``spmm``: it can be differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels._sparse import implementation
from graphattn_kernels.structure import NUM_ARGS, SCHEMA, flat, unflat

__all__ = ["spmm"]


def _implementation(*args: Any) -> Tensor:
    weights, values, backend = args[NUM_ARGS:]
    return implementation("spmm", backend).spmm(unflat(args).by_target, weights, values)


def _fake(*args: Any) -> Tensor:
    values = args[NUM_ARGS + 1]
    return values.new_empty((args[0].shape[0] - 1, *values.shape[1:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.backend = inputs[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *arrays, weights, values = ctx.saved_tensors
    need_weights, need_values = ctx.needs_input_grad[NUM_ARGS : NUM_ARGS + 2]
    grad_weights = grad_values = None
    if need_weights:
        grad_weights = torch.ops.graphattn.sddmm.default(*arrays, grad, values, weights.dim() == 3, ctx.backend)
    if need_values:
        grad_values = torch.ops.graphattn.spmm.default(*flat(unflat(arrays).T), weights, grad, ctx.backend)
    return (*(None,) * NUM_ARGS, grad_weights, grad_values, None)


spmm = register(
    f"spmm({SCHEMA}, Tensor weights, Tensor values, str backend) -> Tensor", _implementation, _fake, _setup, _backward
)
