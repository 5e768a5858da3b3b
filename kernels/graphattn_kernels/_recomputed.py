"""Operators of dot-product attention whose graph comes as a plan of its own: lists of sources, or tiles.

Forward saves the output and the log-sum-exp, backward computes weights again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import Packed, register

__all__ = ["register_attention"]

_INPUTS = "Tensor q, Tensor k, Tensor v, float scale, float? clamp"
_SAVED = "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse"


def register_attention(
    name: str, graph: str, packed: Packed, kernels: Callable[[], ModuleType]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Define ``graphattn::<name>`` and its gradient, and return it: a function of the graph, q, k, v ``[B, T or S, H,
    D]``, scale and clamp, to the output and the log-sum-exp ``[B, T, H]``, both differentiable.

    Args:
        name: Of the operator.
        graph: The schema of the graph's arguments, which come first.
        packed: How the graph stands for these.
        kernels: The module with ``forward(graph, q, k, v, scale, clamp)`` and ``backward(graph, q, k, v, scale, clamp,
            out, lse, grad_out, grad_lse)``, imported on first use: it compiles for the machine it runs on.
    """
    rows = slice(packed.width, packed.width + 3)

    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return kernels().forward(*args)

    def fake(*args: Any) -> tuple[Tensor, Tensor]:
        q, _, v = args[rows]
        return v.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        # Nobody writes to the arrays of a graph: kept as they are, without a saved copy of each.
        ctx.graph, q, k, v, *ctx.options = inputs
        ctx.save_for_backward(q, k, v, *output)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = out.new_zeros(()).expand_as(out)
        grads = gradient(ctx.graph, q, k, v, *ctx.options, out, lse, grad_out, grad_lse)
        return tuple([g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)])

    def backward_implementation(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return kernels().backward(*args)

    def backward_fake(*args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in args[rows])

    operator = register(
        f"{name}({graph}, {_INPUTS}) -> (Tensor, Tensor)", forward, fake, setup, backward, slice(1, 4), packed
    )
    gradient = register(
        f"{name}_backward({graph}, {_INPUTS}, {_SAVED}) -> (Tensor, Tensor, Tensor)",
        backward_implementation,
        backward_fake,
        packed=packed,
    )
    return operator
