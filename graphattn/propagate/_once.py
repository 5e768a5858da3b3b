"""Gradients that are numbers only: whoever differentiates them again is told, and does not get a wrong result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["once"]


def once(gradient: Tensor) -> Tensor:
    """A gradient that was computed without a graph. Under ``create_graph=True``, a derivative of it is an error.

    ``torch.autograd.function.once_differentiable`` says so only where the incoming gradient has a derivative itself.
    """
    if not torch.is_grad_enabled():
        return gradient
    return _Once.apply(gradient.detach().requires_grad_())  # type: ignore[no-any-return]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        raise RuntimeError(
            "this gradient can be computed once, but not differentiated again: it comes from a solver, or from blocks "
            "that are computed again (graphattn.propagate); truncated series on lists of edges have derivatives of "
            "every order"
        )
