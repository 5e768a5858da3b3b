"""Schemas, fakes and gradients. The gradient is an operator of its own, whose gradient is made of its siblings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse import implementation
from graphattn_kernels.structure import NUM_ARGS, SCHEMA, unflat

__all__ = ["segment_softmax"]


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    scores, backend = args[NUM_ARGS:]
    return implementation("segment_softmax", backend).segment_softmax(unflat(args).by_target, scores)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    scores = args[NUM_ARGS]
    lse = scores.new_empty((args[0].shape[0] - 1, scores.shape[1]), dtype=accumulate_dtype(scores.dtype))
    return scores.new_empty(scores.shape), lse


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:NUM_ARGS], output[0])
    ctx.backend = inputs[-1]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *arrays, weights = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(weights)
    grad_scores = _segment_softmax_backward(*arrays, weights, grad, grad_lse, ctx.backend)
    return (*(None,) * NUM_ARGS, grad_scores, None)


def _gradient(*args: Any) -> Tensor:
    weights, grad, grad_lse, backend = args[NUM_ARGS:]
    return implementation("segment_softmax", backend).backward(unflat(args).by_target, weights, grad, grad_lse)


def _setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.backend = inputs[-1]


def _gradient_backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
    # With W = weights, G = grad and row(x) the sum of x over the edges of a target, on each of them:
    # ds = W (G - row(W G) + dl), so its adjoint at u is
    #   dW = u (G - row(W G) + dl) - G row(W u),   dG = W (u - row(W u)),   d(dl) = the sum of W u.
    *arrays, weights, grad, grad_lse = ctx.saved_tensors

    def total(x: Tensor) -> Tensor:
        return torch.ops.graphattn.segment_sum.default(*arrays, x, ctx.backend)

    def spread(x: Tensor) -> Tensor:
        return torch.ops.graphattn.spread.default(*arrays, x, ctx.backend)

    need_weights, need_grad, need_lse = ctx.needs_input_grad[NUM_ARGS : NUM_ARGS + 3]
    mass = total(weights * slope)
    first = second = third = None
    if need_weights:
        shift = -total(weights * grad)
        if grad_lse is not None:
            shift = shift + grad_lse.to(shift.dtype)
        first = slope * (grad + spread(shift)) - grad * spread(mass)
    if need_grad:
        second = weights * (slope - spread(mass))
    if need_lse and grad_lse is not None:
        third = mass.to(grad_lse.dtype)
    return (*(None,) * NUM_ARGS, first, second, third, None)


segment_softmax = register(
    f"segment_softmax({SCHEMA}, Tensor scores, str backend) -> (Tensor, Tensor)", _forward, _fake, _setup, _backward
)
_segment_softmax_backward = register(
    f"segment_softmax_backward({SCHEMA}, Tensor weights, Tensor grad, Tensor? grad_lse, str backend) -> Tensor",
    _gradient,
    lambda *args: args[NUM_ARGS].new_empty(args[NUM_ARGS].shape),
    _setup_gradient,
    _gradient_backward,
)
