"""Schemas, fakes and gradients: the two operators are each other's adjoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels._sparse import implementation
from graphattn_kernels.structure import NUM_ARGS, SCHEMA, unflat

__all__ = ["segment_sum", "spread"]


def _sum(*args: Any) -> Tensor:
    rows, backend = args[NUM_ARGS:]
    return implementation("segment_sum", backend).segment_sum(unflat(args).by_target, rows)


def _spread(*args: Any) -> Tensor:
    rows, backend = args[NUM_ARGS:]
    return implementation("segment_sum", backend).spread(unflat(args).by_target, rows)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:NUM_ARGS])
    ctx.backend = inputs[-1]


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (*(None,) * NUM_ARGS, torch.ops.graphattn.spread.default(*ctx.saved_tensors, grad, ctx.backend), None)


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (*(None,) * NUM_ARGS, torch.ops.graphattn.segment_sum.default(*ctx.saved_tensors, grad, ctx.backend), None)


segment_sum = register(
    f"segment_sum({SCHEMA}, Tensor rows, str backend) -> Tensor",
    _sum,
    lambda *args: args[NUM_ARGS].new_empty((args[0].shape[0] - 1, *args[NUM_ARGS].shape[1:])),
    _setup,
    _sum_backward,
)
spread = register(
    f"spread({SCHEMA}, Tensor rows, str backend) -> Tensor",
    _spread,
    lambda *args: args[NUM_ARGS].new_empty((args[1].shape[0], *args[NUM_ARGS].shape[1:])),
    _setup,
    _spread_backward,
)
