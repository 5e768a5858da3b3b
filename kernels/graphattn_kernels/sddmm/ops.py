"""Schema, fake and gradient. The gradient is an ``spmm`` each way, so it can be differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels._sparse import implementation
from graphattn_kernels.structure import NUM_ARGS, SCHEMA, flat, unflat

__all__ = ["sddmm"]


def _implementation(*args: Any) -> Tensor:
    a, b, channels, backend = args[NUM_ARGS:]
    return implementation("sddmm", backend).sddmm(unflat(args), a, b, channels)


def _fake(*args: Any) -> Tensor:
    a, _, channels, _ = args[NUM_ARGS:]
    edges = args[1].shape[0]
    return a.new_empty((edges, *a.shape[1:]) if channels else (edges, a.shape[1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[: NUM_ARGS + 2])
    ctx.backend = inputs[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *arrays, a, b = ctx.saved_tensors
    spmm = torch.ops.graphattn.spmm.default
    need_a, need_b = ctx.needs_input_grad[NUM_ARGS : NUM_ARGS + 2]
    grad_a = spmm(*arrays, grad, b, ctx.backend) if need_a else None
    grad_b = spmm(*flat(unflat(arrays).T), grad, a, ctx.backend) if need_b else None
    return (*(None,) * NUM_ARGS, grad_a, grad_b, None, None)


sddmm = register(
    f"sddmm({SCHEMA}, Tensor a, Tensor b, bool channels, str backend) -> Tensor",
    _implementation,
    _fake,
    _setup,
    _backward,
)
