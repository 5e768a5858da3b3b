"""Schema, fake and gradient; the gradient is made of differentiable operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.segment_softmax.impl import gather
from graphattn_kernels.structure import NUM_ARGS, SCHEMA, unflat

__all__ = ["segment_softmax"]


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    scores = args[NUM_ARGS]
    lse = scores.new_empty((args[0].shape[0] - 1, scores.shape[1]), dtype=accumulate_dtype(scores.dtype))
    return torch.empty_like(scores), lse


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:NUM_ARGS], output[0])


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    # d score = w * (d w - sum over the row of w * d w + d lse)
    *arrays, weights = ctx.saved_tensors
    rows = torch.ops.graphattn.segment_sum(*arrays, weights * grad) - grad_lse.to(grad.dtype)
    grad_scores = weights * (grad - torch.ops.graphattn.spread(*arrays, rows))
    return (*(None,) * NUM_ARGS, grad_scores)


segment_softmax = register(
    f"segment_softmax({SCHEMA}, Tensor scores) -> (Tensor, Tensor)",
    lambda *args: gather.segment_softmax(unflat(args).by_target, args[NUM_ARGS]),
    _fake,
    _setup,
    _backward,
)
