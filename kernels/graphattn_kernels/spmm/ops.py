"""Schema, fake and gradient. The gradient is an ``sddmm`` and a transposed ``spmm``: it can be differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels.spmm.impl import gather
from graphattn_kernels.structure import NUM_ARGS, SCHEMA, flat, unflat

__all__ = ["spmm"]


def _implementation(*args: Any) -> Tensor:
    weights, values = args[NUM_ARGS:]
    return gather.spmm(unflat(args).by_target, weights, values)


def _fake(*args: Any) -> Tensor:
    values = args[NUM_ARGS + 1]
    return values.new_empty((args[0].shape[0] - 1, *values.shape[1:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *arrays, weights, values = ctx.saved_tensors
    need_weights, need_values = ctx.needs_input_grad[NUM_ARGS:]
    grad_weights = grad_values = None
    if need_weights:
        grad_weights = torch.ops.graphattn.sddmm(*arrays, grad, values, weights.dim() == 3)
    if need_values:
        grad_values = torch.ops.graphattn.spmm(*flat(unflat(arrays).T), weights, grad)
    return (*(None,) * NUM_ARGS, grad_weights, grad_values)


spmm = register(f"spmm({SCHEMA}, Tensor weights, Tensor values) -> Tensor", _implementation, _fake, _setup, _backward)
